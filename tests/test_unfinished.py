"""What is written appears under its name when it is complete, and not before."""

import errno
import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from minitron.errors import OutputError, SourceError
from minitron.files.atomic_file import replace_file
from minitron.files.unfinished import (
    check_absent,
    resumable_file,
    unfinished_file,
    unfinished_folder,
    write_file,
)
from tests.processes import exit_code

RECIPE = {"source": "tiny", "hidden_size": 36, "seed": 3}


@dataclass(frozen=True)
class DiskUsage:
    """What shutil.disk_usage returns."""

    free: int


def write_half_until_killed(out: Path, resumable: bool) -> None:
    with unfinished_folder(out, RECIPE, resumable=resumable) as folder:
        (folder / "done").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def left_by_a_kill(out: Path, *, resumable: bool = False) -> Path:
    """OUT.partial as a process leaves it that was killed while it wrote OUT."""
    assert exit_code(write_half_until_killed, out, resumable) == -signal.SIGKILL
    return out.with_name(out.name + ".partial")


def test_a_folder_appears_when_its_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with unfinished_folder(out, RECIPE) as folder:
        (folder / "config.json").write_text("{}")
        assert folder == tmp_path / "out.partial"
        assert not out.exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "config.json"]


@pytest.mark.parametrize(
    "error", [SourceError("x"), KeyboardInterrupt(), OSError(errno.EIO, "x"), RuntimeError("x")]
)
def test_a_failure_leaves_nothing_and_is_passed_on(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with unfinished_folder(tmp_path / "out", RECIPE) as folder:
            (folder / "half").write_text("")
            raise error

    with pytest.raises(type(error)) as raised:
        fail()
    assert raised.value is error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "half"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("resumable", [False, True])
def test_a_full_disk_is_reported_with_what_stays(
    tmp_path: Path, error: Exception, resumable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / "out.partial"
    monkeypatch.setattr("shutil.disk_usage", lambda path: DiskUsage(free=4096))

    def fill() -> None:
        with unfinished_folder(tmp_path / "out", RECIPE, resumable=resumable) as folder:
            (folder / "half").write_text("")
            raise error

    kept = f"; what is done stays in {partial}" if resumable else ""
    with pytest.raises(OutputError) as raised:
        fill()
    assert (
        str(raised.value) == f"no space left for {tmp_path / 'out'}: free some and run again" + kept
    )
    assert partial.exists() == resumable


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("resumable", [False, True])
def test_a_full_disk_is_reported_for_files_too(
    tmp_path: Path, error: Exception, resumable: bool
) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"

    def fill() -> None:
        with resumable_file(out, RECIPE) if resumable else unfinished_file(out) as place:
            (place / "half" if resumable else place).write_text("")
            raise error

    kept = f"; what is done stays in {partial}" if resumable else ""
    with pytest.raises(
        OutputError, match=f"no space left for {out}: free some and run again{kept}"
    ):
        fill()
    assert partial.exists() == resumable


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_exists_is_never_touched(tmp_path: Path, make: Callable[[Path], None]) -> None:
    out = tmp_path / "out"
    make(out)
    before = out.lstat()
    for write in (
        lambda: check_absent(out),
        lambda: write_file(out, b"new"),
        lambda: unfinished_folder(out, RECIPE).__enter__(),
    ):
        with pytest.raises(OutputError, match=rf"{out} exists already: choose another name or"):
            write()
    assert out.lstat() == before
    assert list(tmp_path.iterdir()) == [out]


def test_what_appears_meanwhile_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write() -> None:
        with unfinished_folder(out, RECIPE):
            out.mkdir()

    with pytest.raises(OutputError, match="exists already"):
        write()
    assert not list(out.iterdir())


@pytest.mark.parametrize("name", ["file/out", "file/a/b/out"])
def test_a_file_in_the_place_of_a_parent_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=rf"{tmp_path / 'file'} is not a folder"):
        check_absent(tmp_path / name)


@pytest.mark.parametrize("write", [unfinished_folder, resumable_file, unfinished_file])
def test_parents_are_made_when_something_is_written_and_removed_when_it_fails(
    write: Any, tmp_path: Path
) -> None:
    out = tmp_path / "a" / "b" / "out"
    options = () if write is unfinished_file else (RECIPE,)

    def interrupted() -> None:
        with write(out, *options) as partial:
            assert partial.exists()
            raise KeyboardInterrupt

    check_absent(out)
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
    with write(out, *options) as partial:
        if write is resumable_file:
            (partial / "result").touch()
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_a_killed_run_left_is_begun_afresh(tmp_path: Path) -> None:
    partial = left_by_a_kill(tmp_path / "out")
    assert (partial / "done").exists()
    with unfinished_folder(tmp_path / "out", {"another": "recipe"}) as folder:
        assert [path.name for path in folder.iterdir()] == ["unfinished.json"]
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("content", [None, "", '{"resum'])
def test_a_run_killed_at_its_very_start_is_begun_afresh(
    tmp_path: Path, content: str | None
) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    if content is not None:
        (partial / "unfinished.json").write_text(content)
    with unfinished_folder(tmp_path / "out", RECIPE) as folder:
        (folder / "config.json").write_text("{}")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_resumable_work_outlives_a_kill_and_continues(tmp_path: Path) -> None:
    left_by_a_kill(tmp_path / "out", resumable=True)
    with unfinished_folder(tmp_path / "out", RECIPE, resumable=True) as folder:
        assert (folder / "done").read_text() == "half"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["done"]


def test_resumable_work_outlives_a_mistake_once_it_has_begun(tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"

    def fail(*, begun: bool) -> None:
        with unfinished_folder(tmp_path / "out", RECIPE, resumable=True) as folder:
            if begun:
                (folder / "checkpoint").mkdir()
            raise SourceError("mistake")

    with pytest.raises(SourceError):
        fail(begun=False)
    assert not partial.exists()
    with pytest.raises(SourceError):
        fail(begun=True)
    assert (partial / "checkpoint").is_dir()


@pytest.mark.parametrize("resumable", [False, True])
def test_resumable_work_is_refused_to_another_recipe_and_what_differs_is_named(
    tmp_path: Path, resumable: bool
) -> None:
    partial = left_by_a_kill(tmp_path / "out", resumable=True)
    other = {"source": "tiny", "hidden_size": 40, "out": "out"}
    with pytest.raises(OutputError) as raised:
        unfinished_folder(tmp_path / "out", other, resumable=resumable).__enter__()
    assert str(raised.value) == (
        f"{partial} was begun with hidden_size 36, now 40, out None, now 'out', seed 3, now None: "
        "repeat those, or remove it"
    )
    assert (partial / "done").read_text() == "half"


def test_resumable_work_outlives_a_kill_while_it_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by_a_kill(tmp_path / "out", resumable=True)

    def killed(path: Path, text: str) -> None:
        path.open("w").close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with suppress(KeyboardInterrupt):
        unfinished_folder(tmp_path / "out", RECIPE, resumable=True).__enter__()
    monkeypatch.undo()
    with unfinished_folder(tmp_path / "out", RECIPE, resumable=True) as folder:
        assert (folder / "done").read_text() == "half"


@pytest.mark.parametrize("resumable", [False, True])
def test_an_interruption_says_where_the_outermost_work_continues(
    tmp_path: Path, resumable: bool
) -> None:
    reached = (lambda _: "part 2") if resumable else None

    def work() -> None:
        options: dict[str, Any] = {"resumable": resumable, "reached": reached}
        with unfinished_folder(tmp_path / "out", RECIPE, **options) as folder:
            options = {"resumable": True, "reached": lambda _: "step 60"}
            with unfinished_folder(folder / "part", RECIPE, **options) as inner:
                (inner / "checkpoint").mkdir()
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupted:
        work()
    notes = ["the same command goes on from part 2"] if resumable else []
    assert interrupted.value.__notes__ == notes
    assert (tmp_path / "out.partial").exists() == resumable


@pytest.mark.parametrize("step", ["rename", "unlink"])
def test_finished_work_outlives_a_kill_while_it_gets_its_name(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def finish() -> None:
        with unfinished_folder(tmp_path / "out", RECIPE, resumable=True) as folder:
            (folder / "done").write_text("whole")

    monkeypatch.setattr(Path, step, killed)
    with pytest.raises(KeyboardInterrupt):
        finish()
    monkeypatch.undo()
    if not (tmp_path / "out").exists():
        finish()
    assert (tmp_path / "out" / "done").read_text() == "whole"
    assert not (tmp_path / "out.partial").exists()


def test_resumable_work_does_not_go_on_from_what_is_not(tmp_path: Path) -> None:
    left_by_a_kill(tmp_path / "out", resumable=False)
    with unfinished_folder(tmp_path / "out", RECIPE, resumable=True) as folder:
        assert not (folder / "done").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", json.dumps({"resumable": False})])
def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path, content: str) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.tex").write_text("years of work")
    (partial / "unfinished.json").write_text(content)
    with pytest.raises(OutputError, match=rf"{partial} is in the way and not ours: move or remove"):
        unfinished_folder(tmp_path / "out", RECIPE).__enter__()
    assert (partial / "thesis.tex").read_text() == "years of work"


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_text("mine")
    with pytest.raises(OutputError, match="in the way and not ours"):
        unfinished_folder(tmp_path / "out", RECIPE).__enter__()
    assert (tmp_path / "out.partial").read_text() == "mine"


@pytest.mark.parametrize("resumable", [False, True])
def test_a_folder_that_another_run_is_writing_is_left_alone(
    tmp_path: Path, resumable: bool
) -> None:
    with unfinished_folder(tmp_path / "out", RECIPE, resumable=resumable) as folder:
        (folder / "half").write_text("theirs")
        with pytest.raises(OutputError, match=r"out.partial is being written by another run: wait"):
            unfinished_folder(tmp_path / "out", RECIPE, resumable=resumable).__enter__()
        assert (folder / "half").read_text() == "theirs"
    assert (tmp_path / "out" / "half").read_text() == "theirs"


def test_a_file_system_without_locks_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with unfinished_folder(tmp_path / "out", RECIPE) as folder:
        (folder / "config.json").write_text("{}")
    assert (tmp_path / "out" / "config.json").exists()


def test_a_folder_where_a_file_is_to_be_built_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scores.partial").mkdir()
    with pytest.raises(OutputError, match="scores.partial is in the way and not ours"):
        write_file(tmp_path / "scores", b"")
    assert (tmp_path / "scores.partial").is_dir()


def test_a_file_appears_whole(tmp_path: Path) -> None:
    write_file(tmp_path / "scores", b"\x00\x01")
    assert (tmp_path / "scores").read_bytes() == b"\x00\x01"
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


def test_a_file_on_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"no space left for .*scores: free some and run again"):
        write_file(tmp_path / "scores", b"\x00")
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_whole_or_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "minitron.json"
    path.write_bytes(b"the kept indices")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="minitron.json cannot be written: No space left"):
            replace_file(path, b"new")
    assert path.read_bytes() == b"the kept indices"
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="tells descriptors from /proc")
def test_all_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync = [], os.fsync

    def record_sync(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "out").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record_sync)
    with unfinished_folder(tmp_path / "out", RECIPE) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_text("1")
    partial, out = str(tmp_path / "out.partial"), str(tmp_path / "out")
    before = {path for path, named in synced if not named}
    assert {partial, f"{partial}/inner", f"{partial}/inner/weights"} <= before
    assert {path for path, named in synced if named} == {out, str(tmp_path)}


def test_a_file_that_another_run_writes_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.nemo"
    with unfinished_file(out) as file:
        file.write_bytes(b"the first run's")
        with (
            pytest.raises(OutputError, match="out.nemo.partial is being written by another run"),
            unfinished_file(out),
        ):
            pass
        assert file.read_bytes() == b"the first run's"
    assert out.read_bytes() == b"the first run's"
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_that_a_killed_run_left_is_begun_afresh(tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_bytes(b"half of much")
    with unfinished_file(tmp_path / "out") as file:
        assert file.read_bytes() == b""
        file.write_bytes(b"1")
    assert (tmp_path / "out").read_bytes() == b"1"
