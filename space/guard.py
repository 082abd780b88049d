"""Guard: what the Space takes of a visitor's request: no files, and no more than a prompt needs.

The page has nothing to upload to, but gradio's server takes files from anybody, of any size, and
reads every other body whole. What is refused is dropped as it comes.

    launch(app_kwargs={"middleware": [Middleware(Guard)]})
"""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 4 * 1024**2  # bytes, of the longest prompt many times over
NO_FILES = "this Space takes no files"
_DROPPED = 1024**3  # bytes read for nothing: who still sends does not see the answer
TOO_LONG = f"the request is longer than {MAX_BODY:,} bytes: send a shorter prompt"


class Guard:
    """ASGI middleware in front of gradio's routes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 415 for a file and 413 for a body that is too long."""
        refusal = _refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        if refusal is not None:
            await _dropped(receive)
            await refusal(scope, receive, send)
        elif scope["type"] == "http":
            await self._app(scope, _bounded(receive), send)
        else:
            await self._app(scope, receive, send)


def _refusal(headers: Headers) -> PlainTextResponse | None:
    """What the headers tell already."""
    if headers.get("content-type", "").strip().lower().startswith("multipart/"):
        return PlainTextResponse(NO_FILES, 415)
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BODY:
        return PlainTextResponse(TOO_LONG, 413)
    return None


def _bounded(receive: Receive) -> Receive:
    """The same body, counted, as a sender need not give its length."""
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BODY:
            if message.get("more_body"):
                await _dropped(receive)
            raise HTTPException(413, TOO_LONG)
        return message

    return counted


async def _dropped(receive: Receive) -> None:
    """Read what is still sent of a body, within a bound."""
    left = _DROPPED
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body"):
            return
