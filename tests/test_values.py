"""How much a JSON text holds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmlite.values import holds_more

LISTS: dict[str, Any] = {
    "numbers": [1] * 99,
    "objects": [{}] * 49 + [{"a": 1}],
    "texts with all that means something": ['\\",[{'] * 99,
    "one long text": ["[{," * 1000],
}


@pytest.mark.parametrize("value", LISTS.values(), ids=LISTS)
def test_values_are_counted_and_texts_are_not(value: Any) -> None:
    assert not holds_more(json.dumps(value).encode(), 100)
    assert holds_more(json.dumps([value, [1] * 100]).encode(), 100)
