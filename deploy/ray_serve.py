"""lmlite on Ray Serve: see ray_serve.md. Needs `pip install 'ray[serve]'`; tried with Ray 2.60.

A gateway takes the requests and passes each to a replica of its model; a replica holds an lmlite server behind a socket file
of its own. Answers pass as they come. Which replica: the one that knows the conversation.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

import lmlite

log = logging.getLogger("ray.serve")

MODELS = {"lmlite-tiny": {}}
"""Where the application is told of none: the toy that comes along."""
MAX_BODY = 32 << 20
"""As lmlite's own."""
AT_ONCE = 256
"""Requests that a replica takes; those beyond its --parallel wait in its own queue, which is where their prefix is."""
STREAM_MAX_S = 3600
"""What a replica that leaves gives its streams."""
REMEMBERED = 100_000
"""Conversations whose replica a router knows: some 20 MB."""
LISTED = frozenset({"/v1/models", "/api/v0/models", "/api/v1/models"})
"""Lists, to which each model's replicas add theirs."""
OWN_HISTORY = ("/v1/responses", "/api/v1/chat")
"""Routes of callers that go on from what a node has kept."""
SYSTEM = ("system", "developer")
"""Roles of a message that many conversations begin with: the one behind it tells them apart."""
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "host", "content-length", "expect", "upgrade", "te"})

Head = tuple[int, list[tuple[str, str]]]


class Sticky(RequestRouter):
    """A conversation goes where it was. A new one goes where its name's hash leads, so that all routers agree; one whose
    replica is no more, likewise, and stays there."""

    def initialize_state(self, **_: Any) -> None:
        self._places: OrderedDict[str, ReplicaID] = OrderedDict()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None or not pending_request.args:
            return [candidate_replicas]
        name = pending_request.args[0]
        place = self._places.get(name)

        def rank(replica: RunningReplica) -> tuple[bool, bytes]:
            full = f"{replica.replica_id.unique_id} {name}"
            return replica.replica_id != place, hashlib.blake2b(full.encode()).digest()

        return [[replica] for replica in sorted(candidate_replicas, key=rank)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: object) -> None:
        if pending_request.args:
            name = pending_request.args[0]
            self._places[name] = replica_id
            self._places.move_to_end(name)
            if len(self._places) > REMEMBERED:
                self._places.popitem(last=False)


class Node:
    """A replica: one lmlite server, with one model."""

    def __init__(self, name: str, options: Mapping[str, Any]):
        options = dict(options)
        self._folder = tempfile.TemporaryDirectory(prefix="lmlite-")
        socket = Path(self._folder.name) / "socket"
        if file := options.pop("file", None):
            options |= {"models": [file], "alias": {name: Path(file).stem}}
        if tokens := options.pop("tokens", None):
            home = ["--home", self._folder.name, "--quiet"]
            subprocess.run([sys.executable, "-m", "lmlite", "token", "import", tokens, *home], check=True)
            options["auth"] = True
        # The name of the node has its process's id, so that one knows which it was.
        node = f"{serve.get_replica_context().replica_id.unique_id}.{os.getpid()}"
        self._server = lmlite.Server(home=Path(self._folder.name), node=node, unix_socket=socket, **options)
        self._server.start()
        self._session: aiohttp.ClientSession | None = None
        self._connector = lambda: aiohttp.UnixConnector(str(socket), limit=0)

    def __del__(self) -> None:
        """Ray calls it when the replica's last request has ended."""
        self._server.close()
        self._folder.cleanup()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None)
            self._session = aiohttp.ClientSession(connector=self._connector(), timeout=timeout, auto_decompress=False)
        return self._session

    async def check_health(self) -> None:
        async with self._client().get("http://lmlite/ready") as answer:
            answer.raise_for_status()

    async def answer(
        self, conversation: str, method: str, target: str, headers: list[tuple[str, str]], body: bytes
    ) -> AsyncIterator[Head | bytes]:
        """First the head of the answer, then its bytes. `conversation` is for the router."""
        async with self._client().request(method, f"http://lmlite{target}", headers=headers, data=body or None) as answer:
            kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP]
            yield answer.status, kept
            async for piece in answer.content.iter_any():
                yield piece


class Gateway:
    """Takes the requests of all models; the first is that of requests which name none, or one that is not here."""

    def __init__(self, models: dict[str, DeploymentHandle]):
        self._models = {name: handle.options(stream=True) for name, handle in models.items()}

    async def __call__(self, request: Request) -> Response:
        body = bytearray()
        try:
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_BODY:
                    return JSONResponse({"error": {"message": "the body is too large", "type": "invalid_request_error"}}, 413)
        except ClientDisconnect:
            return Response(status_code=499)
        if request.url.path in LISTED:
            return await self._list(request)
        said = read(body)
        model = said.get("model")
        handle = self._models.get(model if isinstance(model, str) else "", next(iter(self._models.values())))
        try:
            return await self._pass(handle, request, conversation_of(request, said), bytes(body))
        except RayError as error:  # nothing of the answer has been sent: the client may ask again
            log.warning("a replica was lost: %s", type(error).__name__)
            return JSONResponse(
                {"error": {"message": "the replica of this conversation was lost", "type": "server_error"}},
                503,
                {"Retry-After": "1"},
            )

    async def _pass(self, handle: DeploymentHandle, request: Request, conversation: str, body: bytes) -> Response:
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers = [(name, value) for name, value in request.headers.items() if name not in HOP_BY_HOP]
        answer = handle.answer.remote(conversation, request.method, target, headers, body)
        status, kept = await anext(answer)

        async def rest() -> AsyncIterator[bytes]:
            ended = False
            try:
                async for piece in answer:
                    yield piece
                ended = True
            finally:
                if not ended:  # the client has left
                    answer.cancel()

        response = StreamingResponse(rest(), status)
        response.raw_headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in kept]
        return response

    async def _list(self, request: Request) -> Response:
        merged: dict[str, Any] = {}
        for name, handle in self._models.items():
            answer = await self._pass(handle, request, name, b"")
            assert isinstance(answer, StreamingResponse)
            said = json.loads(b"".join([piece async for piece in answer.body_iterator]))  # type: ignore[misc]
            if answer.status_code != 200:
                return JSONResponse(said, answer.status_code)
            key = "models" if "models" in said else "data"
            known = {item.get("id", item.get("key")) for item in merged.get(key, [])}
            fresh = [item for item in said[key] if item.get("id", item.get("key")) not in known]
            merged = {**said, **merged, key: [*merged.get(key, []), *fresh]}
        return JSONResponse(merged)


def read(body: bytes | bytearray) -> Mapping[str, Any]:
    """What the body says, nothing where it is no object: its replica will tell what is wrong with it."""
    try:
        said = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def conversation_of(request: Request, said: Mapping[str, Any]) -> str:
    """What names the conversation: what the client says of it, or its first message (and the one behind a system prompt), as
    a client that sends the whole history repeats them; for routes of callers that go on from what is kept, their token;
    otherwise the client's address."""
    named = request.headers.get("x-conversation-id")
    if named:
        return f"id {named}"
    token = request.headers.get("authorization") or request.headers.get("x-api-key")
    if token and request.url.path.startswith(OWN_HISTORY):
        return digest(token)
    begins = said.get("messages") or said.get("prompt")
    if isinstance(begins, list) and isinstance(begins[0], dict):
        begins = begins[: 2 if begins[0].get("role") in SYSTEM else 1]
    if begins:
        return digest([said.get("system"), begins])
    return f"from {request.client.host if request.client else ''}"


def digest(value: object) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def build(arguments: Mapping[str, Any]) -> serve.Application:
    """The application. `models`: each one's name, its `file`, its `tokens` (a file of `lmlite token export`; without one none
    is asked for) and options of lmlite's; `replicas`: the least and the most of each; `streams`: how many one of them should
    have; `cpus` and `gpus`: what one takes."""
    autoscaling = {
        "min_replicas": arguments.get("replicas", [1, 4])[0],
        "max_replicas": arguments.get("replicas", [1, 4])[1],
        "target_ongoing_requests": arguments.get("streams", 4),
        "upscale_delay_s": arguments.get("upscale_delay_s", 10),
        "downscale_delay_s": arguments.get("downscale_delay_s", 600),
    }
    handles = {
        name: serve.deployment(
            Node,
            name=f"model-{i}",
            max_ongoing_requests=AT_ONCE,
            autoscaling_config=autoscaling,
            request_router_config=RequestRouterConfig(request_router_class=Sticky),
            graceful_shutdown_timeout_s=STREAM_MAX_S,
            health_check_period_s=5,
            ray_actor_options={"num_cpus": arguments.get("cpus", 1), "num_gpus": arguments.get("gpus", 0)},
        ).bind(name, options or {})
        for i, (name, options) in enumerate((arguments.get("models") or MODELS).items())
    }
    gateway = serve.deployment(Gateway, max_ongoing_requests=10 * AT_ONCE, ray_actor_options={"num_cpus": 0})
    return gateway.bind(handles)
