"""What may be set for one model apart from the others, wherever it is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any, Literal

from .records import dataclass


@dataclass(slots=True, frozen=True, kw_only=True)
class ModelSettings:
    """None and an empty mapping: not said here. Names and values as in `config.Config`.

    A request's stand `over` the user's own for the model, those over the model's (model.yaml), and all over the server's.
    """

    context_length: int | None = None
    parallel: int | None = None
    kv_cells: int | None = None
    kv_type: str | None = None
    kv_offload: bool | None = None
    eval_batch_size: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    flash_attention: bool | Literal["auto"] | None = None
    experts: int | None = None
    mmap: bool | None = None
    mlock: bool | None = None
    chat_template: str | None = None
    projector: bool | None = None
    ttl_s: float | None = None  # 0: never unloaded for being idle
    sampling: Mapping[str, Any] = field(default_factory=dict)  # fields of `request.Sampling` and "max_tokens"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)  # variables of the chat template

    def over(self, below: ModelSettings) -> ModelSettings:
        """What this says, and what `below` says where this says nothing."""
        mine: dict[str, Any] = {}
        for item in fields(self):
            here, there = getattr(self, item.name), getattr(below, item.name)
            mine[item.name] = {**there, **here} if isinstance(here, Mapping) else (there if here is None else here)
        return ModelSettings(**mine)


UNSAID = ModelSettings()
"""Says nothing of anything."""
