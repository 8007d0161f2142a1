"""The frames between the server and an engine: a 12-byte header, then a payload.

Header, little-endian: payload length in bytes (u32), kind (u32), request id (u32; 0 where no request is meant).
Payloads are UTF-8 JSON, except TEXT and RESULT (raw UTF-8), EMBEDDING (little-endian float32) and MEDIA (a file's bytes).
The kinds stand in `csrc/frames.h` too; a test holds the two tables against each other.
"""

from __future__ import annotations

import struct
from enum import IntEnum

HEADER = struct.Struct("<III")
MAX_PAYLOAD = 64 << 20
"""Above any real frame (a prompt of a whole long context is a few MB), below what would hurt to buffer."""


class Kind(IntEnum):
    # commands, server -> engine
    LOAD = 1
    GENERATE = 2
    EMBED = 3
    TOKENIZE = 4
    DETOKENIZE = 5
    RENDER = 6
    CANCEL = 7
    STATS = 8
    RERANK = 9
    ATTACH_DRAFT = 10
    ESTIMATE = 11
    MEDIA = 12
    # events, engine -> server
    LOAD_PROGRESS = 64
    LOADED = 65
    PROMPT_PROGRESS = 66
    TEXT = 67
    LOGPROBS = 68
    FINISHED = 69
    EMBEDDING = 70
    TOKENS = 71
    RESULT = 72
    REPORT = 73
    HEARTBEAT = 74
    ERROR = 75
    REASONING = 76
    TOOL_CALL = 77
    ESTIMATED = 78
    NOTICE = 79


def pack(kind: Kind, request_id: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload), kind, request_id) + payload
