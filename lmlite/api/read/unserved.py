"""Fields of other servers' requests that would change the answer and are not served: refused by name, never ignored.

Each is listed with the values that ask for nothing, which clients send of their own accord. Fields that are in no table
here change no answer (`user`, `metadata`, `store`, `service_tier`, `prompt_cache_key`, `prediction`, `id_slot`,
`cache_prompt`, `priority`, ...) or are nobody's; these are ignored, as LM Studio ignores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...errors import UnsupportedField
from .fields import Fields

Harmless = tuple[Any, ...]

ANYWHERE: Final[Mapping[str, Harmless]] = {
    # OpenAI
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": ([], ["text"]),
    "web_search_options": (),
    # LM Studio
    "preset": ("",),
    # llama.cpp's server
    "adaptive_target": (-1.0,),
    "chat_format": (),
    "chat_parser": ("",),
    "chat_template": ("",),
    "grammar_lazy": (False,),
    "grammar_triggers": ([],),
    "min_keep": (0,),
    "n_indent": (0,),
    "n_probs": (0,),
    "parse_tool_calls": (True,),
    "post_sampling_probs": (False,),
    "preserved_tokens": ([],),
    "reasoning_budget_message": ("",),
    "reasoning_format": ("auto", "deepseek"),
    "response_fields": ([],),
    "return_tokens": (False,),
    # vLLM, SGLang and their like
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "documents": ([],),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1.0,),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "no_stop_trim": (False,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "separate_reasoning": (True,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_regex": ("", []),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    # text-generation-webui and its like
    "guidance_scale": (1.0,),
    "negative_prompt": ("",),
    "smoothing_factor": (0.0,),
    "tfs": (1.0,),
    "tfs_z": (1.0,),
    "top_a": (0.0,),
}

CHAT: Final[Mapping[str, Harmless]] = {
    "add_special_tokens": (False,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}

RESPONSES: Final[Mapping[str, Harmless]] = {
    "conversation": ("",),
    "moderation": (),
    "prompt": (),
}

TEXT: Final[Mapping[str, Harmless]] = {
    "add_special_tokens": (True,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}

MESSAGES: Final[Mapping[str, Harmless]] = {"mcp_servers": ([],)}

EMBEDDINGS: Final[Mapping[str, Harmless]] = {
    "add_special_tokens": (True,),
    "embd_normalize": (2,),
    "normalize": (True,),
    "truncate_prompt_tokens": (),
}

STREAM: Final[Mapping[str, Harmless]] = {"continuous_usage_stats": (False,)}
"""Of `stream_options`."""

REASONING: Final[Mapping[str, Harmless]] = {"exclude": (False,)}
"""Of `reasoning`."""


def refuse(fields: Fields, unserved: Mapping[str, Harmless]) -> None:
    """Raises `UnsupportedField` for the first that asks for something."""
    for name, value in fields.values.items():
        harmless = unserved.get(name)
        if harmless is not None and value is not None and value not in harmless:
            raise UnsupportedField(fields.where(name))
