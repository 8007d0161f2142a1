"""What a request's name means is looked up once, when it comes, and holds for all of the request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from lmlite import errors
from lmlite.card import ModelCard
from lmlite.core.disk.catalog import Catalog
from tests.conftest import FakeServer
from tests.core.test_pool import Shelf, Stage, card, failure, play
from tests.fakes import FakeEngine


@dataclass
class Counting(Shelf):
    """A catalogue whose names can change what they mean; `asked` are those that were looked up."""

    asked: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    changed: bool = False

    def resolve(self, name: str) -> ModelCard | None:
        self.asked.append(name)
        return self.latest(card(self.names.get(name, name)))

    def matched(self, name: str) -> ModelCard | None:
        return None

    def latest(self, card: ModelCard) -> ModelCard | None:
        return next((known for known in self.listed if known.id == card.id), None)

    async def settings_changed(self) -> bool:
        return self.changed


def test_a_name_is_looked_up_once_where_the_model_is_loaded() -> None:
    shelf = Counting(names={"mine": "a"})

    async def scene(stage: Stage) -> None:
        await stage.ask("mine")
        shelf.asked.clear()
        assert (await stage.ask("mine")).instance.id == "a"
        assert shelf.asked == ["mine"]
        await stage.ask("mine", draft="b")
        shelf.asked.clear()
        await stage.ask("mine", draft="b")
        assert shelf.asked == ["mine", "b"]

    play(scene, FakeEngine, shelf)


def test_a_name_is_looked_up_again_only_after_a_look_at_the_disk() -> None:
    shelf = Counting()
    looks: list[int] = []

    async def look() -> None:
        looks.append(len(shelf.asked))
        shelf.listed = (*shelf.listed, card("new"))

    async def scene(stage: Stage) -> None:
        assert (await stage.ask("new")).instance.id == "new"
        assert looks == [1]
        shelf.asked.clear()
        await stage.ask("new")
        assert (looks, shelf.asked) == ([1], ["new"])
        shelf.changed = True
        await stage.ask("new")
        assert (looks, shelf.asked) == ([1, 2], ["new"] * 3)
        refused = await failure(stage.ask("none"), errors.ModelNotFound)
        assert (refused.name, refused.param) == ("none", "model")
        refused = await failure(stage.ask("new", draft="none"), errors.ModelNotFound)
        assert (refused.name, refused.param) == ("none", "draft_model")

    play(scene, FakeEngine, shelf, look=look)


def test_a_request_stays_with_what_its_name_meant_when_it_came() -> None:
    """Meanwhile the files of the models are looked at, and others take the name."""
    shelf = Counting(names={"mine": "a"})

    async def scene(stage: Stage) -> None:
        await stage.ask("a")
        asked = stage.ask("mine")
        while "mine" not in shelf.asked:
            await asyncio.sleep(0)
        shelf.names["mine"] = "b"
        assert (await asked).instance.id == "a"
        assert (await stage.ask("mine")).instance.id == "b"

    play(scene, FakeEngine, shelf)


def test_a_model_whose_card_has_changed_is_asked_as_it_is_now() -> None:
    shelf = Counting()

    async def look() -> None:
        shelf.listed = tuple(replace(known, problem="it is broken") for known in shelf.listed)

    async def scene(stage: Stage) -> None:
        refused = await failure(stage.ask("a"), errors.LoadFailed)
        assert "it is broken" in str(refused)

    play(scene, FakeEngine, shelf, look=look)


def test_an_instance_that_has_gone_since_is_not_found() -> None:
    async def scene(stage: Stage) -> None:
        await stage.pool.load("a", identifier="mine")
        meant = await stage.pool.resolve("mine")
        assert (meant.card.id, meant.instance) == ("a", "mine")
        await stage.pool.unload("mine")
        with pytest.raises(errors.ModelNotFound):
            await stage.pool._choose(meant, "chat")

    play(scene, FakeEngine)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"model": "talker", "prompt": "hi"}),
        ("/v1/embeddings", {"model": "text-embedding-embedder", "input": "hi"}),
        ("/v1/tokenize", {"model": "talker", "input": "hi"}),
    ],
)
def test_every_endpoint_has_its_name_looked_up_once(
    serve_fake: Callable[..., FakeServer], monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    client = serve_fake().client()
    assert client.post(path, body).status == 200
    asked: list[str] = []
    resolve = Catalog.resolve

    def counted(catalog: Catalog, name: str) -> ModelCard | None:
        asked.append(name)
        return resolve(catalog, name)

    monkeypatch.setattr(Catalog, "resolve", counted)
    assert client.post(path, body).status == 200
    assert asked == [body["model"]]
