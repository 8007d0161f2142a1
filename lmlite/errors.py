"""Every error lmlite raises on purpose: a fact with a status, a code and the numbers, never a sentence to be parsed.

Each dialect spells these in its own shape (`api/<dialect>.error`). Anything else that reaches the joiner in `app.py`
is a bug and is answered as `InternalError`, without its text.
"""

from __future__ import annotations


class LmError(Exception):
    """Base of all errors. `status` is the HTTP status, `code` a stable snake_case word, `param` the field at fault."""

    status: int = 500
    code: str = "internal_error"
    param: str | None = None

    @property
    def message(self) -> str:
        return str(self)


def let_go(error: BaseException | None) -> None:
    """What was raised on the way to `error`, and `error` itself, hold the frames they came through no longer: a request's
    body and prompt are in them, and an error that one of its own frames refers to waits for the collector with all that."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        error = pending.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            error.__traceback__ = None
            pending += (error.__cause__, error.__context__)


class InternalError(LmError):
    """A bug of ours; the text says nothing about it, the log does."""

    def __init__(self) -> None:
        super().__init__("internal error")


# ---- what the client sent ------------------------------------------------------------------------------------------


class InvalidRequest(LmError):
    """A body that breaks a rule; `param` names the field (`messages[2].role`)."""

    status, code = 400, "invalid_value"

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class MediaRefused(InvalidRequest):
    """A picture or sound that cannot be taken; `index` is its place among all of the conversation."""

    def __init__(self, message: str, index: int, where: str = ""):
        what = f"'{where}': {message}" if where else f"picture or sound {index + 1} of the conversation: {message}"
        super().__init__(what, where or None)
        self.reason, self.index = message, index

    def at(self, where: str) -> MediaRefused:
        """The same, said of the field `where`."""
        return MediaRefused(self.reason, self.index, where)


class InvalidJson(InvalidRequest):
    code = "invalid_json"


class MissingField(InvalidRequest):
    code = "missing_required_parameter"

    def __init__(self, param: str):
        super().__init__(f"'{param}' field is required", param)


class InvalidType(InvalidRequest):
    code = "invalid_type"

    def __init__(self, param: str, expected: str):
        super().__init__(f"'{param}' must be {expected}", param)


class OutOfRange(InvalidRequest):
    """`low` and `high` are the inclusive bounds, None where there is none."""

    def __init__(self, param: str, low: float | None, high: float | None):
        if low is not None and high is not None:
            bounds = f"between {low} and {high}"
        else:
            bounds = f"at least {low}" if high is None else f"at most {high}"
        super().__init__(f"'{param}' must be {bounds}", param)
        self.low, self.high = low, high


class UnsupportedField(InvalidRequest):
    """A field that would change the answer and that lmlite does not serve (yet)."""

    code = "unsupported_parameter"

    def __init__(self, param: str, why: str = "is not supported"):
        super().__init__(f"'{param}' {why}", param)


class UnrecognizedKeys(InvalidRequest):
    """A strict body has fields that it cannot have; `keys` lists them."""

    code = "unrecognized_keys"

    def __init__(self, keys: tuple[str, ...]):
        listing = ", ".join(f"'{key[:80]}'" for key in keys[:20])
        super().__init__(f"Unrecognized key(s): {listing}", keys[0][:80])
        self.keys = keys


class ContextOverflow(LmError):
    """The prompt does not fit; `needed` and `limit` are tokens, `index` the input's place in a list of inputs.

    The one sentence that has to be in others' words: by these phrases agents know that they have to shorten their history.
    """

    status, code = 400, "context_length_exceeded"

    def __init__(self, needed: int, limit: int, index: int | None = None):
        what = "the request" if index is None else f"input {index} of the request"
        super().__init__(
            f"prompt is too long: {what} ({needed} tokens) exceeds the available context size ({limit} tokens), since this "
            f"model's maximum context length is {limit} tokens, as it is loaded. Send less, or give the model more context "
            "if it was trained for that: --context-length, context_length in model-settings.json, or that of a load"
        )
        self.needed, self.limit, self.index = needed, limit, index


# ---- HTTP ------------------------------------------------------------------------------------------------------------


_HTTP_CODES = {
    401: "invalid_api_key",
    403: "permission_denied",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
}
"""What the official APIs and their clients call these."""


class HttpError(LmError):
    """A request refused before any dialect saw its body. Its client hears so after `wait_s` seconds, and is not listened to
    meanwhile."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[str, str], ...] = (), wait_s: float = 0.0):
        super().__init__(message)
        self.status, self.headers, self.wait_s = status, headers, wait_s
        self.code = _HTTP_CODES.get(status, "invalid_request")


class UnexpectedEndpoint(LmError):
    """Unknown path (404), or a known one with a method it does not have (405, `allow` lists those it has). `meant` is the
    path that an unknown one is a part of, or has as its end: a base URL lacks its /v1, or has it twice."""

    code = "unexpected_endpoint"

    def __init__(self, method: str, target: str, allow: tuple[str, ...] = (), meant: str = ""):
        hint = f" Did you mean {meant}?" if meant else ""
        super().__init__(f"Unexpected endpoint or method. ({method} {target}){hint}")
        self.status = 405 if allow else 404
        self.allow = allow


# ---- models and engines ----------------------------------------------------------------------------------------------


_ALIAS_HINT = (
    "One of them can have such a name, too: --alias NAME=MODEL, or alias in config.json; "
    "a * in NAME is any text, as in 'claude-*=MODEL'"
)


class ModelNotFound(LmError):
    """No model goes by `name`; `known` lists the ids there are."""

    status, code = 404, "model_not_found"

    def __init__(self, name: str | None, known: tuple[str, ...], param: str = "model"):
        listing = ", ".join(known[:20]) or "none"
        if name is None:
            super().__init__(f"No model was named and there is not exactly one to take. Models: {listing}")
        else:
            alias = f". {_ALIAS_HINT}" if known and param != "instance_id" else ""
            super().__init__(f'Invalid model identifier "{name[:200]}". Models: {listing}{alias}')
        self.name, self.known, self.param = name, known, param


class ModelNotLoaded(LmError):
    """The model is there, but it is not loaded and requests load none (`jit` is off)."""

    status, code, param = 404, "model_not_found", "model"

    def __init__(self, name: str):
        super().__init__(f'Model "{name}" is not loaded, and just-in-time loading is off: load it first')
        self.name = name


class WrongModelType(LmError):
    """An embedding model asked to chat, or a text model without the asked ability; `needs` is that ability."""

    status, code = 400, "model_type_mismatch"

    def __init__(self, name: str, needs: str, param: str = "model"):
        super().__init__(f'Model "{name}" does not support {needs}')
        self.name, self.needs, self.param = name, needs, param


class SenseMissing(WrongModelType):
    """A model that cannot see was sent a picture, or one that cannot hear sound. `able` are the ids of models that can,
    `left_out` tells that it could, too, had it been loaded with its projector."""

    def __init__(self, name: str, sense: str, able: tuple[str, ...] = (), left_out: bool = False):
        super().__init__(name, sense)
        what, verb = ("pictures", "see") if sense == "vision" else ("sound", "hear")
        if left_out:
            why = "it was loaded without its projector (--projector, or its model-settings.json)"
        elif able:
            why = f"{', '.join(able[:5])} can"
        else:
            why = f"no model here can {verb}; one that does comes with a projector (mmproj-*.gguf) beside it"
        self.args = (f'Model "{name}" does not support {what}: {why}',)
        self.able = able


class EffortRefused(LmError):
    """The model's reasoning cannot be told this; `options` is what it can be told, nothing of a model without any."""

    status, code, param = 400, "invalid_value", "reasoning"

    def __init__(self, name: str, effort: str, options: tuple[str, ...]):
        listing = " or ".join(f"'{option}'" for option in options) if options else "left out"
        super().__init__(f"'reasoning' of '{effort}' is not for model \"{name}\": it must be {listing}")
        self.name, self.effort, self.options = name, effort, options


class LoadFailed(LmError):
    """The model's file was refused; `reason` is the engine's or the header reader's word for why."""

    status, code = 422, "model_load_failed"

    def __init__(self, name: str, reason: str, param: str = "model"):
        super().__init__(f'Model "{name}" cannot be loaded: {reason}')
        self.name, self.reason, self.param = name, reason, param


class SettingRefused(LoadFailed):
    """The model cannot have a setting that it was to be loaded with: `setting` is its name in `settings.ModelSettings`, or
    that of the server's option."""

    status, code = 400, "invalid_value"

    def __init__(self, name: str, setting: str, why: str):
        super().__init__(name, f"{why} (--{setting.replace('_', '-')}, or its model-settings.json)", setting)
        self.setting, self.why = setting, why


class MemoryRefused(LmError):
    """The model was not loaded, because it does not fit the memory that there is; `needed` and `available` are bytes."""

    status, code = 422, "insufficient_memory"

    def __init__(self, needed: int, available: int, param: str = "model"):
        shown = f"{needed} bytes ({needed / (1 << 30):.2f} GiB), {available} bytes ({available / (1 << 30):.2f} GiB)"
        super().__init__(f"not enough memory to load the model: it needs {shown} are available")
        self.needed, self.available, self.param = needed, available, param


class RateLimited(LmError):
    """Not now; `retry_after_s` is whole seconds."""

    status, code = 429, "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_s: int = 1):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(RateLimited):
    """Too many requests wait already."""

    def __init__(self, limit: int, retry_after_s: int = 1):
        super().__init__(f"{limit} requests are waiting already", retry_after_s)
        self.limit = limit


class EngineGone(LmError):
    """The engine died or hung under this request; `reason` says how (`crashed (SIGABRT)`, `out_of_memory`, ...)."""

    status, code = 503, "engine_gone"

    def __init__(self, name: str, reason: str):
        super().__init__(f'The engine of model "{name}" is gone: {reason}')
        self.name, self.reason = name, reason


class RequestRefused(LmError):
    """The same request ended an engine of the model more than once: it is not given to another one.

    422, because clients repeat those with a 5xx, and this is what must not be repeated."""

    status, code = 422, "request_ends_engine"

    def __init__(self, name: str, n_crashes: int, reason: str):
        super().__init__(
            f'This request ended the engine of model "{name}" {n_crashes} times, last: {reason}; it is refused for a while, '
            "or until the model is loaded or unloaded by name"
        )
        self.name, self.n_crashes, self.reason = name, n_crashes, reason


class ModelUnloaded(EngineGone):
    """The model was told to leave, or had to, under this request. The message is LM Studio's."""

    status, code = 409, "model_unloaded"

    def __init__(self, name: str):
        super().__init__(name, "unloaded")
        self.args = ("Model unloaded.",)


class ModelFileChanged(LmError):
    """A file of the loaded model is not what was loaded any more, so the model was unloaded; asked again, it is loaded anew.

    503, for that is no fault of the request: the same one succeeds in a moment, and clients repeat those with a 503."""

    status, code = 503, "model_file_changed"

    def __init__(self, name: str):
        super().__init__(f'A file of model "{name}" has changed since it was loaded; the next request loads it anew')
        self.name = name


class EngineError(LmError):
    """The engine refused or failed one request with a code of its own that has no class here."""

    def __init__(self, code: str, message: str, status: int = 500, param: str | None = None):
        super().__init__(message)
        self.code, self.status, self.param = code, status, param


class ShuttingDown(LmError):
    """The server is stopping; a stream that has begun gets this as its last event."""

    status, code = 503, "shutting_down"

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


# ---- downloads -------------------------------------------------------------------------------------------------------


class HubError(LmError):
    """The hub, or something on the way to it, did not deliver. `retry` tells whether it may yet, `retry_after_s` how long
    it asked to be left alone. The message holds no URL: those may carry signatures."""

    status, code = 502, "hub_error"

    def __init__(self, message: str, *, retry: bool = False, retry_after_s: float = 0.0):
        super().__init__(message)
        self.retry, self.retry_after_s = retry, retry_after_s


class NothingToDownload(LmError):
    """The hub has no such repository, file or quantization; `known` lists the quantizations there are."""

    status, code, param = 404, "model_not_found", "model"

    def __init__(self, message: str, known: tuple[str, ...] = ()):
        super().__init__(f"{message}; there is {', '.join(known)}" if known else message)
        self.known = known


class AccessDenied(LmError):
    """The hub has it but does not give it to this token, or to none."""

    status, code, param = 403, "hub_access_denied", "model"

    def __init__(self, repo: str):
        super().__init__(f"the hub does not give {repo} to this server: accept its terms there, or set HF_TOKEN")


class DiskFull(LmError):
    """`needed` and `available` are bytes."""

    status, code = 422, "insufficient_disk_space"

    def __init__(self, needed: int, available: int):
        super().__init__(f"the download needs {needed} bytes, the disk has {available} left for it")
        self.needed, self.available = needed, available


class JobNotFound(LmError):
    status, code, param = 404, "job_not_found", "job_id"

    def __init__(self, id: str):
        super().__init__(f'There is no download job "{id[:80]}"')


# ---- servers of tools ------------------------------------------------------------------------------------------------


class ToolServerFailed(LmError):
    """A server whose tools a request wants cannot be used; `why` says so in words. `ephemeral`: the request brought it along.

    424, for the request is sound and so is this server; clients repeat those with a 5xx."""

    status = 424

    def __init__(self, message: str, ephemeral: bool, param: str | None = None, status: int = 424):
        super().__init__(message)
        self.code = "mcp_connection_error" if ephemeral else "plugin_connection_error"
        self.param, self.status = param, status


# ---- what is kept ----------------------------------------------------------------------------------------------------


class StateError(LmError):
    """The state database cannot be opened, read or written."""

    code = "state_error"


class NotKept(LmError):
    """The turn was to be kept and could not be; `why` says what is in the way.

    422, because clients repeat those with a 5xx: the model would answer again and again."""

    status, code, param = 422, "not_stored", "store"

    def __init__(self, why: str):
        super().__init__(f'The answer cannot be stored: {why}. With "store": false it need not be')
        self.why = why


class UnknownExchange(LmError):
    """Nothing is kept under `id`, or not for whoever asks."""

    status, code = 404, "not_found"

    def __init__(self, id: str):
        super().__init__(f"Nothing is stored with id '{id[:80]}'.")
        self.id = id


class UnknownItem(LmError):
    """An item of an earlier turn that is only pointed at, and that turn is not kept, or not for whoever asks."""

    status, code, param = 404, "not_found", "input"

    def __init__(self, id: str):
        super().__init__(f"Item with id '{id[:80]}' not found. Items are not there where \"store\" was false.")
        self.id = id


class UnknownPrevious(LmError):
    """The turn that this one goes on from is not kept, or not for whoever asks. The message is OpenAI's."""

    status, code, param = 400, "previous_response_not_found", "previous_response_id"

    def __init__(self, id: str):
        super().__init__(f"Previous response with id '{id[:80]}' not found.")
        self.id = id


class UnfinishedPrevious(LmError):
    """The turn that this one goes on from still runs."""

    status, code, param = 400, "previous_response_not_finished", "previous_response_id"

    def __init__(self, id: str):
        super().__init__(f"Previous response with id '{id[:80]}' is not finished yet.")
        self.id = id


class ConversationTooLong(LmError):
    """More turns or text than any context has room for; `turns` is how many there are, at least."""

    status, code, param = 400, "context_length_exceeded", "previous_response_id"

    def __init__(self, turns: int):
        super().__init__(f"prompt is too long: the conversation that it goes on from has {turns} turns")
        self.turns = turns


# ---- start ----------------------------------------------------------------------------------------------------------


class ConfigError(LmError):
    """An option has a value it cannot have; the command line prints it and exits 2."""

    code = "config_error"


class HomeInUse(ConfigError):
    """Another server has the home folder; `pid` and `port` are its own, None where it has not told them."""

    code = "home_in_use"

    def __init__(self, home: str, pid: int | None, port: int | None):
        owner = "another server" if pid is None else f"the server with process id {pid}"
        where = "" if port is None else f" on port {port}"
        super().__init__(
            f"{home} is in use by {owner}{where}; stop it with `lmlite server stop`, or choose another folder with --home"
        )
        self.home, self.pid, self.port = home, pid, port


class PortInUse(ConfigError):
    """Another program listens there; `pid` is its process where that can be found."""

    code = "port_in_use"

    def __init__(self, host: str, port: int, pid: int | None):
        owner = "another program" if pid is None else f"process {pid}"
        super().__init__(f"port: {port} on {host} is in use by {owner}; --port chooses another")
        self.host, self.port, self.pid = host, port, pid


class BuildError(LmError):
    """The native library is missing or of another version."""

    code = "native_library"
