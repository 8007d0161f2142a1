"""Writes a checkpoint of `teach.py` as two GGUF files, the text model and its tower: `python write.py vision.pt FOLDER`.

Matrices become Q8_0 in the one and float16 in the other; with --exact all stay as trained. FOLDER/lmlite-tiny-vision
gets them both, as programs want a model and its projector.
"""

import argparse
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from pictures import SIDE
from tower import Sight

sys.path.append(str(Path(__file__).resolve().parent.parent / "train_tiny"))
from export import export  # noqa: E402

NAME = "lmlite tiny vision"
DESCRIPTION = "A toy model for trying lmlite and for its tests. It names the colour and the shape of what is drawn."
TOWER = "What lmlite-tiny-vision sees with. It knows five colours and three shapes."
FILE = NAME.replace(" ", "-")


def write_tower(weights: dict[str, torch.Tensor], sight: Sight, path: Path, exact: bool) -> None:
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_name(NAME)
    writer.add_author("the lmlite authors")
    writer.add_description(TOWER)
    writer.add_license("mit")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if exact else gguf.LlamaFileType.MOSTLY_F16)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_size(SIDE)
    writer.add_vision_patch_size(sight.patch)
    writer.add_vision_embedding_length(sight.width)
    writer.add_vision_feed_forward_length(sight.hidden)
    writer.add_vision_block_count(sight.blocks)
    writer.add_vision_head_count(sight.heads)
    writer.add_vision_attention_layernorm_eps(sight.epsilon)
    writer.add_vision_projection_dim(weights["mm.2.weight"].shape[0])
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    # Without this, llama.cpp reads such a tower before its last block.
    writer.add_array("clip.vision.feature_layer", [sight.blocks])
    for name, weight in weights.items():
        if name.startswith("guess"):
            continue
        numbers = weight.float().numpy()
        # Positions are added, not multiplied: llama.cpp wants these as they are.
        half = numbers.ndim > 1 and "position" not in name and not exact
        writer.add_tensor(name if name.startswith("mm.") else f"v.{name}", numbers.astype(np.float16) if half else numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--exact", action="store_true", help="keep the weights as float32")
    options = parser.parse_args()
    checkpoint = torch.load(options.checkpoint)
    folder: Path = options.folder / FILE
    folder.mkdir(exist_ok=True)
    model, tower = folder / f"{FILE}.gguf", folder / f"mmproj-{FILE}.gguf"
    export(checkpoint, model, options.exact, NAME, DESCRIPTION)
    write_tower(checkpoint["tower"], Sight(**checkpoint["sight"]), tower, options.exact)
    for path in (model, tower):
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
