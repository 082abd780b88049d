"""Resumable file: one file OUT whose making may be interrupted and taken up again.

What is done so far lies in the folder `OUT.partial/`, under the rules of `unfinished`; the file
appears, and the folder goes, when all is done.

    with resumable_file(Path("scores.safetensors"), recipe) as folder:
        (folder / RESULT).write_bytes(b"")
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minitron.errors import OutputError
from minitron.files.unfinished import (
    _claim,
    _is_full,
    _leave,
    _no_space,
    check_absent,
    sync,
    sync_names,
)

RESULT = "result"


def partial_of(out: Path) -> Path:
    """Where the work on `out` lies meanwhile."""
    return out.with_name(out.name + ".partial")


@contextmanager
def resumable_file(out: Path, recipe: Mapping[str, Any]) -> Iterator[Path]:
    """Give a folder to work in; its file RESULT becomes `out` when the block ends well.

    After an interruption the folder stays, and the same recipe takes it up again; with another one
    OutputError tells the settings that differ.
    """
    check_absent(out)
    partial = partial_of(out)
    lock = _claim(partial, recipe, resumable=True)
    try:
        yield partial
        check_absent(out)
        sync(partial / RESULT)
        (partial / RESULT).rename(out)
        sync_names(out.absolute().parent)
        shutil.rmtree(partial)
    except BaseException as error:
        is_full = _is_full(error, partial)
        _leave(partial, resumable=True)
        if is_full:
            raise _no_space(out, partial) from error
        if isinstance(error, OSError):
            raise OutputError(f"{out} cannot be written: {error.strerror}") from error
        raise
    finally:
        os.close(lock)
