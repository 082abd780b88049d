"""Guard: what the Space takes of a visitor's request: no files, and no more than a prompt needs.

The page has nothing to upload to, but gradio's server takes files from anybody, of any size, and
reads every other body whole. Where a body names a file by its address, in place of any text or
number, gradio fetches that file and keeps it. What is refused is dropped as it comes.

    launch(app_kwargs={"middleware": [Middleware(Guard)]})
"""

import json
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 4 * 1024**2  # bytes, of the longest prompt many times over
NO_FILES = "this Space takes no files"
_FILE = ("_type", "gradio.FileData")  # key and value by which gradio knows a file in JSON
_DROPPED = 1024**3  # bytes read for nothing: who still sends does not see the answer
TOO_LONG = f"the request is longer than {MAX_BODY:,} bytes: send a shorter prompt"


class Guard:
    """ASGI middleware in front of gradio's routes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 415 for a file and 413 for a body that is too long."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = _refusal(Headers(scope=scope))
        if refusal is not None:
            await _dropped(receive)
            await refusal(scope, receive, send)
            return
        taken = await _taken(receive)
        if isinstance(taken, PlainTextResponse):
            await taken(scope, receive, send)
        else:
            await self._app(scope, _again(taken, receive), send)


def _refusal(headers: Headers) -> PlainTextResponse | None:
    """What the headers tell already."""
    if headers.get("content-type", "").strip().lower().startswith("multipart/"):
        return PlainTextResponse(NO_FILES, 415)
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BODY:
        return PlainTextResponse(TOO_LONG, 413)
    return None


async def _taken(receive: Receive) -> list[Message] | PlainTextResponse:
    """The messages of a body, counted, as a sender need not give its length; or what refuses it."""
    messages: list[Message] = []
    length, more = 0, True
    while more:
        message = await receive()
        messages.append(message)
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
        if length > MAX_BODY:
            if more:
                await _dropped(receive)
            return PlainTextResponse(TOO_LONG, 413)
    names = _names_file(b"".join(message.get("body", b"") for message in messages))
    return PlainTextResponse(NO_FILES, 415) if names else messages


def _names_file(body: bytes) -> bool:
    """Whether gradio would take a part of this JSON for a file, here or at an address."""
    # Most bodies cannot: the name may be escaped, or in an encoding of two bytes a letter.
    if not any(sign in body for sign in (b"FileData", b"\\u", b"\0")):
        return False
    found = False

    def look(pairs: Sequence[tuple[str, Any]]) -> None:
        nonlocal found
        found = found or _FILE in pairs

    try:
        json.loads(body, object_pairs_hook=look)
    except (ValueError, RecursionError):  # then it is nothing to gradio either
        return found
    return found


def _again(messages: list[Message], receive: Receive) -> Receive:
    """The messages that have come, then those that follow."""
    left = iter(messages)

    async def following() -> Message:
        return next(left, None) or await receive()

    return following


async def _dropped(receive: Receive) -> None:
    """Read what is still sent of a body, within a bound."""
    left = _DROPPED
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body"):
            return
