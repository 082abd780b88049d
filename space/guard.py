"""Guard: refuses requests with files, and bodies longer than any prompt.

The page has no upload, but gradio's server accepts files from anybody, of any size, and reads every
other body whole. Where a body names a file by its address, in place of any text or number, gradio
fetches that file and keeps it. A refused body is discarded as it arrives.

    launch(app_kwargs={"middleware": [Middleware(RequestGuard)]})
"""

import json
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 4 * 1024**2  # bytes, many times those of the longest prompt
NO_FILES = "this Space takes no files"
_FILE = ("_type", "gradio.FileData")  # the key and value that mark a file in gradio's JSON
_DISCARDED = 1024**3  # bytes at most; a client reads the answer only after it has sent all
TOO_LONG = f"the request is longer than {MAX_BODY:,} bytes: send a shorter prompt"


class RequestGuard:
    """ASGI middleware in front of gradio's routes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 415 to a file and 413 to a body that is too long."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = _refusal(Headers(scope=scope))
        if refusal is not None:
            await _discard_body(receive)
            await refusal(scope, receive, send)
            return
        messages = await _read_body(receive)
        if isinstance(messages, PlainTextResponse):
            await messages(scope, receive, send)
        else:
            await self._app(scope, _replay(messages, receive), send)


def _refusal(headers: Headers) -> PlainTextResponse | None:
    """The answer to a request whose headers are enough to refuse it."""
    if headers.get("content-type", "").strip().lower().startswith("multipart/"):
        return PlainTextResponse(NO_FILES, 415)
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BODY:
        return PlainTextResponse(TOO_LONG, 413)
    return None


async def _read_body(receive: Receive) -> list[Message] | PlainTextResponse:
    """The messages of a body, or a refusal. Counted, as a client need not send the length."""
    messages: list[Message] = []
    length, more = 0, True
    while more:
        message = await receive()
        messages.append(message)
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
        if length > MAX_BODY:
            if more:
                await _discard_body(receive)
            return PlainTextResponse(TOO_LONG, 413)
    names = _names_file(b"".join(message.get("body", b"") for message in messages))
    return PlainTextResponse(NO_FILES, 415) if names else messages


def _names_file(body: bytes) -> bool:
    """Whether gradio would read a part of this JSON as a file, sent or at an address."""
    # Most bodies have none of these: the mark may be escaped, or two bytes per letter.
    if not any(sign in body for sign in (b"FileData", b"\\u", b"\0")):
        return False
    found = False

    def look(pairs: Sequence[tuple[str, Any]]) -> None:
        nonlocal found
        found = found or _FILE in pairs

    try:
        json.loads(body, object_pairs_hook=look)
    except (ValueError, RecursionError):  # gradio cannot read it either
        return found
    return found


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """The messages that were read, then those that follow."""
    left = iter(messages)

    async def following() -> Message:
        return next(left, None) or await receive()

    return following


async def _discard_body(receive: Receive) -> None:
    """Read the rest of a body, within a bound."""
    left = _DISCARDED
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body"):
            return
