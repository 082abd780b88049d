"""Credentials: tokens, passwords and signatures, masked in whatever is printed or logged.

A server, a proxy or a library may repeat in an error what it was sent. Knows the form of such
secrets, and the token of this machine. Stores none.

    mask("401 for Authorization: Bearer hf_abc")   # "401 for Authorization: ***"
"""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any
from urllib.parse import quote

MASK = "***"
_SHORTEST = 4  # characters of a token: masking a shorter value would hide ordinary text
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # A header as HTTP, Python or JSON writes it; the value may have a scheme before it.
        (
            r"""((?:proxy-)?authorization\\?['"]?\s*[:=,]\s*(?:b?\\?['"])?)(?:[a-z]+\s+)?[^\s'",;}\\]+""",
            rf"\1{MASK}",
        ),
        (r"\b(bearer\s+)[a-z0-9._~+/=-]{8,}", rf"\1{MASK}"),
        (r"\b(?:hf_|api_org_)[a-z0-9]{16,}", MASK),
        (r"\bhf_(?:oauth|jwt|app)_[\w.~+/=-]+", MASK),
        (
            r"([a-z][a-z0-9+.-]{0,30}://)[^\s/@'\"]+@",
            rf"\1{MASK}@",
        ),  # user and password of an address
        (
            r"([?&;](?:x-amz-(?:signature|credential|security-token)|signature|sig|policy|"
            r"key-pair-id|token|access_token|auth)=)[^&\s'\"<>]+",
            rf"\1{MASK}",
        ),
    )
)


def mask(text: str) -> str:
    """`text` with every credential in it replaced by `***`."""
    for token in _own_tokens():
        for form in {token, quote(token, safe="")}:
            text = text.replace(form, MASK)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def mask_error(error: BaseException) -> None:
    """Mask the texts of an exception and of those that it came from, which a traceback prints."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.args = tuple(mask(arg) if isinstance(arg, str) else arg for arg in one.args)
        for key, value in list(getattr(one, "__dict__", {}).items()):
            if isinstance(value, str):
                one.__dict__[key] = mask(value)
        pending += [one.__cause__, one.__context__]


class masked_errors:  # noqa: N801 - a block, as contextlib's are
    """Around a block: whatever it raises is masked, with all that it was raised from."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            mask_error(error)


@contextmanager
def masked_logs() -> Iterator[None]:
    """Mask whatever is logged in this block, by any library of the process."""
    make = logging.getLogRecordFactory()

    def make_masked(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        with suppress(TypeError, ValueError):  # the handler says that a record is not well formed
            record.msg, record.args = mask(record.getMessage()), ()
        if record.exc_info and record.exc_info[1] is not None:
            mask_error(record.exc_info[1])
        return record

    logging.setLogRecordFactory(make_masked)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)


def masked_traceback(
    show: Callable[[type[BaseException], BaseException, TracebackType | None], Any],
) -> Callable[[type[BaseException], BaseException, TracebackType | None], Any]:
    """`show`, a sys.excepthook, for exceptions whose texts are masked first."""

    def show_masked(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> Any:
        mask_error(error)
        return show(kind, error, trace)

    return show_masked


def _own_tokens() -> set[str]:
    """The tokens that this process would send."""
    found = {os.environ.get(name, "").strip() for name in _VARIABLES}
    hub: Any = sys.modules.get("huggingface_hub")  # importing it would take longer than --help may
    if hub is not None:
        with suppress(OSError, ValueError):  # a token that cannot be read is sent to nobody
            found.add((hub.get_token() or "").strip())
    return {token for token in found if len(token) >= _SHORTEST}
