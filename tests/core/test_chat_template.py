"""What is told of a chat template without rendering it. Templates that read tools: test_gguf.py."""

from __future__ import annotations

import pytest

from lmlite.card import Reasoning
from lmlite.core.disk.chat_template import reasoning

SWITCH = Reasoning(("off", "on"), "on")
LEVELS = ("low", "medium", "high")


@pytest.mark.parametrize(
    "template",
    [
        "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}",
        "{{ '/nothink' if not enable_thinking else '' }}",
        "{%- set enable_thinking = enable_thinking | default(false) %}",
        "{# enable_thinking is a switch #}{% if enable_thinking %}",
        "{% if enable_thinking == true %}",
    ],
)
def test_a_switch_is_on_unless_told_otherwise(template: str) -> None:
    assert reasoning(template + "<think>") == SWITCH


def test_a_switch_is_off_where_thoughts_could_not_be_told_from_the_answer() -> None:
    template = "Deliberation: {% if enable_thinking is defined and enable_thinking %}enabled{% else %}disabled{% endif %}"
    assert reasoning(template) == Reasoning(("off", "on"), "off")


@pytest.mark.parametrize(
    ("template", "options", "default"),
    [
        ("{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
         "{{ 'Reasoning: ' + reasoning_effort }}", LEVELS, "medium"),
        ("{{ reasoning_effort }}", LEVELS, "medium"),
        ("{{ reasoning_effort | default('low') }}", LEVELS, "low"),
        ('{% set reasoning_effort = reasoning_effort if reasoning_effort is defined else "high" %}'
         '{% if reasoning_effort in ["low", "minimal"] %}', ("low", "high"), "high"),
        ("{% if reasoning_effort == 'low' %}{% elif reasoning_effort == 'high' %}", ("low", "high"), "low"),
        ("{% if enable_thinking %}{% if reasoning_effort == 'high' %}", ("off", "on", "high"), "on"),
        ("{% if enable_thinking %}{{ reasoning_effort }}", ("off", "on", *LEVELS), "medium"),
    ],
)  # fmt: skip
def test_levels_are_those_that_the_template_tells_apart(template: str, options: tuple[str, ...], default: str) -> None:
    assert reasoning(template) == Reasoning(options, default)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% set r = false if reasoning_effort is defined and reasoning_effort | lower == 'none' else true %}",
         Reasoning(("off", "on"), "on", "none")),
        ("{% if reasoning_effort is not defined %}{% set reasoning_effort = 'no_think' %}"
         "{% elif reasoning_effort not in ['high', 'low', 'no_think'] %}{{ raise_exception('no') }}{% endif %}",
         Reasoning(("off", "low", "high"), "off", "no_think")),
        ("{% set reasoning_effort = reasoning_effort | default('high') %}{% if reasoning_effort != \"none\" %}",
         Reasoning(("off", "high"), "high", "none")),
        ("{% if enable_thinking %}{% if reasoning_effort == 'none' %}", Reasoning(("off", "on"), "on", "none")),
        ("{% if reasoning_effort is none %}{% if reasoning_effort == 'low' %}", Reasoning(("low",), "low")),
        ("{% if mode == 'none' %}{{ reasoning_effort }}", Reasoning(LEVELS, "medium")),
    ],
)  # fmt: skip
def test_an_effort_can_be_the_switch(template: str, expected: Reasoning) -> None:
    assert reasoning(template) == expected


@pytest.mark.parametrize(
    "template",
    [
        "",
        "plain text about enable_thinking and reasoning_effort",
        "{# {% if enable_thinking %} #}",
        "{% set ns = namespace(enable_thinking=true) %}{% if ns.enable_thinking %}",
        "{{ raise('enable_thinking') }}",
        "{% set reasoning_effort = 'high' %}",
        "{% if reasoning_effort == 'max' %}",
        "{% if enable_thinking",
    ],
)
def test_a_template_that_reads_neither_cannot_be_told(template: str) -> None:
    assert reasoning(template) is None


@pytest.mark.parametrize("piece", ["{% enable_thinking", "{{ reasoning_effort in '", "{% reasoning_effort = ", "'low' in "])
def test_hostile_templates_take_linear_time(piece: str) -> None:
    body = piece * ((1 << 20) // len(piece))
    for template in (body, "{% " + body + " %}", f"{{% {piece} %}}" * 20_000):
        reasoning(template)
