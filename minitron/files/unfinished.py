"""Unfinished work: what is written appears under its name only when it is complete.

A folder OUT is built in `OUT.partial/` and renamed at the end; an existing OUT is never touched,
and a partial one belongs to the recipe that began it. Does not know what is inside.

    with unfinished_folder(Path("OUT"), recipe) as folder:
        (folder / "config.json").write_text("{}")
"""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minitron.errors import OutputError
from minitron.files.atomic_file import rename_synced, replace_file, sync, sync_names

with suppress(ImportError):  # on Windows no verb gets here: check_system
    import fcntl

INPUTS = "inputs.json"
RESULT = "result"  # the file that `resumable_file` renames
_RECIPE_FILE = "unfinished.json"
_NO_WORK = (_RECIPE_FILE, INPUTS)  # all that a mistaken run leaves: nothing to continue from
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
_NO_SPACE = 1 << 20  # bytes

logger = logging.getLogger(__name__)

# Where a run continues in a folder that an earlier one left, in words; None: at the beginning.
Reached = Callable[[Path], str | None]


def check_absent(out: Path) -> None:
    """Refuse an output that exists already, or that no folder can hold; OutputError names it.

    Folders above it that are missing are made when it is written.
    """
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} exists already: choose another name or remove it")
    above = next(one for one in out.absolute().parents if one.exists() or one.is_symlink())
    if not above.is_dir():
        raise OutputError(f"{above} is not a folder: choose another place")
    if not os.access(above, os.W_OK):
        raise OutputError(f"{above} cannot be written to: choose another place")


def partial_of(out: Path) -> Path:
    """Where `out` is built."""
    return out.with_name(out.name + ".partial")


@contextmanager
def _folders_above(out: Path) -> Iterator[None]:
    """Make the folders above an output; those that hold nothing at the end are removed again."""
    missing = [one for one in out.absolute().parents if not one.exists()]
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for one in missing:  # the nearest first
            with suppress(OSError):
                one.rmdir()


@contextmanager
def unfinished_folder(
    out: Path, recipe: Mapping[str, Any], *, resumable: bool = False, reached: Reached | None = None
) -> Iterator[Path]:
    """Give a folder to build in; it becomes `out` when the block ends well.

    A `resumable` folder is kept after an interruption, and the same recipe continues it; with
    another recipe OutputError names the settings that differ. What `reached` returns is logged by
    the run that continues, and noted on the KeyboardInterrupt that stops one. Any other folder is
    removed on failure, and begun afresh where a killed run has left one. One that another run is
    writing to is left alone: OutputError says so.
    """
    with _claimed_folder(out, recipe, resumable=resumable, reached=reached) as partial:
        yield partial
        check_absent(out)
        sync(partial)
        partial.rename(out)  # with its recipe, without which a run could not continue it
        (out / _RECIPE_FILE).unlink()
        sync_names(out, out.absolute().parent)


@contextmanager
def resumable_file(
    out: Path, recipe: Mapping[str, Any], *, reached: Reached | None = None
) -> Iterator[Path]:
    """Give a resumable folder to work in; its file RESULT becomes `out` when the block ends well.

    The folder follows the rules of `unfinished_folder`, and is removed when all is done.
    """
    try:
        with _claimed_folder(out, recipe, resumable=True, reached=reached) as partial:
            yield partial
            check_absent(out)
            rename_synced(partial / RESULT, out)
            shutil.rmtree(partial)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from error


@contextmanager
def unfinished_file(path: Path) -> Iterator[Path]:
    """Give a file to write to; it becomes `path` when the block ends well, else it is removed.

    It must be opened, not replaced: it is locked, and OutputError refuses a second run meanwhile.
    """
    check_absent(path)
    with _folders_above(path):
        partial = partial_of(path)
        lock = _lock_file(partial)
        try:
            check_absent(path)
            yield partial
            check_absent(path)
            rename_synced(partial, path)
        except BaseException as error:
            is_full = _is_full(error, partial.absolute().parent)
            with suppress(OSError):
                partial.unlink()
            if is_full:
                raise _no_space(path, partial) from error
            if isinstance(error, OSError):
                raise OutputError(f"{path} cannot be written: {error.strerror}") from error
            raise
        finally:
            os.close(lock)


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears only when complete. Raises OutputError."""
    with unfinished_file(path) as partial:
        partial.write_bytes(content)


def check_same_inputs(folder: Path, out: Path, **inputs: str | int | None) -> None:
    """Refuse to continue in `folder` with other inputs than it was begun with.

    `inputs` are digests by the input's name; those of earlier calls stay recorded. OutputError
    calls the work `out` and names the inputs that differ.
    """
    path = folder / INPUTS
    try:
        begun = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):  # none, or killed at its very start
        begun = {}
    differing = [what for what in inputs if begun.get(what, inputs[what]) != inputs[what]]
    if differing:
        names = " and ".join(what.replace("_", " ") for what in differing)
        raise OutputError(
            f"{out} was begun with other {names} under the same settings: give what it was begun "
            "with, or remove it"
        )
    replace_file(path, json.dumps({**begun, **inputs}).encode())


@contextmanager
def _claimed_folder(
    out: Path, recipe: Mapping[str, Any], *, resumable: bool, reached: Reached | None
) -> Iterator[Path]:
    """The partial folder of `out`, locked while the block runs."""
    check_absent(out)
    with _folders_above(out):
        partial = partial_of(out)
        lock = _claim(partial, recipe, resumable=resumable)
        try:
            if reached is not None and (place := reached(partial)) is not None:
                logger.info("going on from %s", place)
            yield partial
        except BaseException as error:
            is_full = _is_full(error, partial)
            _remove_failed(partial, resumable=resumable)
            if isinstance(error, KeyboardInterrupt):
                # What a folder inside this one has noted holds only if this one is kept, and names
                # the place of its own work.
                place = reached(partial) if reached is not None and partial.exists() else None
                error.__notes__ = (
                    [] if place is None else [f"the same command goes on from {place}"]
                )
            if is_full:
                raise _no_space(out, partial) from error
            raise
        finally:
            os.close(lock)


def _claim(partial: Path, recipe: Mapping[str, Any], *, resumable: bool) -> int:
    """Make `partial`, or continue it where the recipe is the same; the descriptor of its lock."""
    wished = {"resumable": resumable, "recipe": json.loads(json.dumps(recipe))}
    if partial.exists():
        os.close(_lock_folder(partial))
        begun = _recipe_of(partial)
        if not begun["resumable"]:
            shutil.rmtree(partial)
        elif begun != wished:
            differences = _differences(begun["recipe"], wished["recipe"])
            failure = _failure_of(partial)
            remedy = "repeat those, or remove it" if failure is None else f"{failure}: remove it"
            joint = ": " if failure is None else ", and "
            raise OutputError(f"{partial} was begun with {differences}{joint}{remedy}")
        else:
            return _lock_folder(partial)
    try:
        partial.mkdir(exist_ok=True)
        lock = _lock_folder(partial)
        (partial / _RECIPE_FILE).write_text(json.dumps(wished, indent=2) + "\n")
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(f"{partial} cannot be written: {error.strerror}") from error
    return lock


def _lock_folder(partial: Path) -> int:
    """Lock a folder against other runs until the descriptor is closed."""
    if not partial.is_dir():
        raise OutputError(f"{partial} is in the way and not ours: move or remove it")
    descriptor = os.open(partial, os.O_RDONLY)
    if not try_lock(descriptor):
        os.close(descriptor)
        raise _in_use(partial)
    return descriptor


def _lock_file(partial: Path) -> int:
    """Lock a file, which is created, or emptied where a killed run has left one."""
    if partial.is_dir():
        raise OutputError(f"{partial} is in the way and not ours: move or remove it")
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"{partial} cannot be written: {error.strerror}") from error
    # One that another run has renamed since it was opened is that run's result.
    if not try_lock(descriptor) or not has_name(descriptor, partial):
        os.close(descriptor)
        raise _in_use(partial)
    os.ftruncate(descriptor, 0)
    return descriptor


def try_lock(descriptor: int) -> bool:
    """Lock a file or folder until its descriptor is closed; False where another process has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, as Lustre may be
        pass
    return True


def has_name(descriptor: int, path: Path) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _in_use(partial: Path) -> OutputError:
    return OutputError(
        f"{partial} is being written by another run: wait for it, or choose another name"
    )


def _recipe_of(partial: Path) -> dict[str, Any]:
    """The recipe that began `partial`; a run killed at its very start leaves none, and no work."""
    try:
        begun = json.loads((partial / _RECIPE_FILE).read_text())
        return {"resumable": bool(begun["resumable"]), "recipe": dict(begun["recipe"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        if any(path.name != _RECIPE_FILE for path in partial.iterdir()):
            raise OutputError(f"{partial} is in the way and not ours: move or remove it") from None
        return {"resumable": False, "recipe": {}}


def note_failure(partial: Path, failure: str) -> None:
    """Note, in words, why the recipe that began `partial` cannot end otherwise if repeated."""
    file = partial / _RECIPE_FILE
    if file.exists():
        content = {**json.loads(file.read_text()), "failure": failure}
        replace_file(file, json.dumps(content, indent=2).encode())


def _failure_of(partial: Path) -> str | None:
    """What `note_failure` has noted."""
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads((partial / _RECIPE_FILE).read_text())
        return str(content["failure"]) if "failure" in content else None
    return None


def _differences(begun: Mapping[str, Any], wished: Mapping[str, Any]) -> str:
    keys = sorted(key for key in {*begun, *wished} if begun.get(key) != wished.get(key))
    return ", ".join(f"{key} {begun.get(key)!r}, now {wished.get(key)!r}" for key in keys)


def _is_full(error: BaseException, folder: Path) -> bool:
    """Whether the disk is full; safetensors and torch.save raise exceptions of their own for it."""
    if any(reason in str(error) for reason in _FULL):
        return True
    return isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < _NO_SPACE


def _no_space(out: Path, partial: Path) -> OutputError:
    kept = f"; what is done stays in {partial}" if partial.exists() else ""
    return OutputError(f"no space left for {out}: free some and run again{kept}")


def _remove_failed(partial: Path, *, resumable: bool) -> None:
    """Remove what a failed run leaves, unless a later run can continue from it."""
    began = partial.is_dir() and any(path.name not in _NO_WORK for path in partial.iterdir())
    if not (resumable and began):
        shutil.rmtree(partial, ignore_errors=True)
