"""The endpoints by which a request comes: what each of them sends and answers. One table, read by both codecs."""

from __future__ import annotations

import msgspec

DONE = b'{"type":"[DONE]"}'
"""The end of a stream that says `[DONE]`, as an event like any other."""


class Endpoint(msgspec.Struct, frozen=True):
    """One endpoint below `/v1`.

    `conversing`: its requests are turns of a session, answered by the events of the Responses API; all others are
    passed on as they are and answered whole, or by chunks that end in `[DONE]`. `streams`: its body may ask for a
    stream. `owns`: what it makes lives with the credential that made it. `context`: what it is sent may be readable to
    the organisation of its session alone.
    """

    path: str
    conversing: bool = False
    streams: bool = False
    owns: bool = False
    context: bool = False


RESPONSES = Endpoint("responses", conversing=True, streams=True, owns=True)
COMPACT = Endpoint("responses/compact", owns=True, context=True)
INPUT_TOKENS = Endpoint("responses/input_tokens", context=True)
CONVERSATIONS = Endpoint("conversations", owns=True)
CHAT = Endpoint("chat/completions", streams=True)
EMBEDDINGS = Endpoint("embeddings")

PASSED_ON = (COMPACT, INPUT_TOKENS, CONVERSATIONS, CHAT, EMBEDDINGS)
"""Those that take part in selection, health and failover, and in no session."""
