"""Unfinished work: what is written appears under its name only when it is complete.

A folder OUT is built in `OUT.partial/` and renamed at the end; an existing OUT is never touched,
and a partial one belongs to the recipe that began it. Does not know what is inside.

    with unfinished_folder(Path("OUT"), recipe) as folder:
        (folder / "config.json").write_text("{}")
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minitron.errors import OutputError

with suppress(ImportError):  # on Windows no verb comes as far as here: check_system
    import fcntl

INPUTS = "inputs.json"
_RECIPE_FILE = "unfinished.json"
_NO_WORK = (_RECIPE_FILE, INPUTS)  # what a run of a mistake leaves: nothing to go on with
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
_NO_SPACE = 1 << 20  # bytes
_IS_WINDOWS = os.name == "nt"
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # of a file system that cannot


def check_absent(out: Path) -> None:
    """Refuse an output that exists already, or whose parent does not; OutputError names it."""
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} exists already: choose another name or remove it")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"{parent} is not a folder: create it first")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{parent} cannot be written to: choose another place")


@contextmanager
def unfinished_folder(
    out: Path, recipe: Mapping[str, Any], *, resumable: bool = False
) -> Iterator[Path]:
    """Give a folder to build in; it becomes `out` when the block ends well.

    A `resumable` folder outlives an interruption, and the same recipe takes it up again; with
    another recipe OutputError tells the settings that differ. Any other folder is removed on
    failure, and begun afresh where a killed run has left one. One that another run is writing to
    is left alone: OutputError says so.
    """
    check_absent(out)
    partial = out.with_name(out.name + ".partial")
    lock = _claim(partial, recipe, resumable=resumable)
    try:
        yield partial
        check_absent(out)
        sync(partial)
        partial.rename(out)  # a folder without its recipe could not be taken up again
        (out / _RECIPE_FILE).unlink()
        sync_names(out, out.absolute().parent)
    except BaseException as error:
        is_full = _is_full(error, partial)
        _leave(partial, resumable=resumable)
        if is_full:
            raise _no_space(out, partial) from error
        raise
    finally:
        os.close(lock)


@contextmanager
def unfinished_file(path: Path) -> Iterator[Path]:
    """Give a file to write to; it becomes `path` when the block ends well, else it is removed.

    It must be opened, not replaced: it is locked, and OutputError refuses a second run meanwhile.
    """
    check_absent(path)
    partial = path.with_name(path.name + ".partial")
    lock = _locked_file(partial)
    try:
        check_absent(path)
        yield partial
        check_absent(path)
        sync(partial)
        partial.rename(path)
        sync_names(path.absolute().parent)
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
    """Refuse to go on in `folder` with other files than it was begun with under the same names.

    `inputs` are digests, by what they are of; those that earlier calls gave stay on record.
    OutputError, which calls the work `out`, names what differs.
    """
    path = folder / INPUTS
    try:
        begun = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):  # none, or killed at its very start
        begun = {}
    differing = [what for what in inputs if begun.get(what, inputs[what]) != inputs[what]]
    if differing:
        told = " and ".join(what.replace("_", " ") for what in differing)
        raise OutputError(
            f"{out} was begun with other {told} under the same settings: give what it was begun "
            "with, or remove it"
        )
    replace_file(path, json.dumps({**begun, **inputs}).encode())


def replace_file(path: Path, content: bytes) -> None:
    """Give a file new content, all of it or none: what was there stays until that is on the disk.

    Raises OutputError.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        sync(partial)
        partial.replace(path)
        sync_names(path.absolute().parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def sync(path: Path) -> None:
    """Wait until a file, or every file in a folder, is on the disk and not only on its way."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    for file in files:
        _sync(file, os.O_RDWR if _IS_WINDOWS else os.O_RDONLY)
    if path.is_dir():
        sync_names(path, *(one for one in path.rglob("*") if one.is_dir()))


def sync_names(*folders: Path) -> None:
    """The same of the names in folders, which Windows keeps by itself."""
    for folder in folders:
        if not _IS_WINDOWS:
            _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def _claim(partial: Path, recipe: Mapping[str, Any], *, resumable: bool) -> int:
    """Make `partial` ours: new, or left by the same recipe. Returns the descriptor of its lock."""
    wished = {"resumable": resumable, "recipe": json.loads(json.dumps(recipe))}
    if partial.exists():
        os.close(_lock(partial))
        begun = _begun(partial)
        if not begun["resumable"]:
            shutil.rmtree(partial)
        elif begun != wished:
            told = _differences(begun["recipe"], wished["recipe"])
            raise OutputError(f"{partial} was begun with {told}: repeat those, or remove it")
        else:
            return _lock(partial)
    try:
        partial.mkdir(exist_ok=True)
        lock = _lock(partial)
        (partial / _RECIPE_FILE).write_text(json.dumps(wished, indent=2) + "\n")
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(f"{partial} cannot be written: {error.strerror}") from error
    return lock


def _lock(partial: Path) -> int:
    """Keep other runs out until the descriptor is closed."""
    if not partial.is_dir():
        raise OutputError(f"{partial} is in the way and not ours: move or remove it")
    descriptor = os.open(partial, os.O_RDONLY)
    if not is_locked(descriptor):
        os.close(descriptor)
        raise _in_use(partial)
    return descriptor


def _locked_file(partial: Path) -> int:
    """The same for a file, which is made, or emptied where a killed run has left one."""
    if partial.is_dir():
        raise OutputError(f"{partial} is in the way and not ours: move or remove it")
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"{partial} cannot be written: {error.strerror}") from error
    # One that another run has renamed since it was opened is that run's result.
    if not is_locked(descriptor) or not is_file_of(descriptor, partial):
        os.close(descriptor)
        raise _in_use(partial)
    os.ftruncate(descriptor, 0)
    return descriptor


def is_locked(descriptor: int) -> bool:
    """Lock a file or folder until its descriptor is closed; False where another process has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, as Lustre may be
        pass
    return True


def is_file_of(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one that bears this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _in_use(partial: Path) -> OutputError:
    return OutputError(
        f"{partial} is being written by another run: wait for it, or choose another name"
    )


def _begun(partial: Path) -> dict[str, Any]:
    """What began `partial`. A run killed at its very start leaves no recipe, and nothing else."""
    try:
        begun = json.loads((partial / _RECIPE_FILE).read_text())
        return {"resumable": bool(begun["resumable"]), "recipe": dict(begun["recipe"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        if any(path.name != _RECIPE_FILE for path in partial.iterdir()):
            raise OutputError(f"{partial} is in the way and not ours: move or remove it") from None
        return {"resumable": False, "recipe": {}}


def _differences(begun: Mapping[str, Any], wished: Mapping[str, Any]) -> str:
    keys = sorted(key for key in {*begun, *wished} if begun.get(key) != wished.get(key))
    return ", ".join(f"{key} {begun.get(key)!r}, now {wished.get(key)!r}" for key in keys)


def _is_full(error: BaseException, folder: Path) -> bool:
    """Whether a full disk is why; safetensors and torch.save tell it in their own exceptions."""
    if any(told in str(error) for told in _FULL):
        return True
    return isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < _NO_SPACE


def _no_space(out: Path, partial: Path) -> OutputError:
    kept = f"; what is done stays in {partial}" if partial.exists() else ""
    return OutputError(f"no space left for {out}: free some and run again{kept}")


def _leave(partial: Path, *, resumable: bool) -> None:
    """After a failure: keep what a later run can take up, remove everything else."""
    began = partial.is_dir() and any(path.name not in _NO_WORK for path in partial.iterdir())
    if not (resumable and began):
        shutil.rmtree(partial, ignore_errors=True)
