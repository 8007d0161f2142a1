"""Settings of one model: what is said nearer to the request stands over what is said farther away."""

from __future__ import annotations

from lmlite.settings import ModelSettings


def test_what_is_said_stands_over_what_is_below() -> None:
    above = ModelSettings(context_length=100, mmap=False, sampling={"temperature": 0.1})
    below = ModelSettings(context_length=200, parallel=2, mmap=True, sampling={"temperature": 0.9, "top_k": 5})
    both = above.over(below)
    assert both == ModelSettings(
        context_length=100, parallel=2, mmap=False, sampling={"temperature": 0.1, "top_k": 5}
    )


def test_nothing_said_changes_nothing() -> None:
    said = ModelSettings(ttl_s=0, template_kwargs={"enable_thinking": False})
    assert ModelSettings().over(said) == said == said.over(ModelSettings())
