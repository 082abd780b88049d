"""What the Space keeps of its visitors, files and freed memory, and takes of them: all bounded."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

from starlette.exceptions import HTTPException  # noqa: E402
from starlette.responses import PlainTextResponse  # noqa: E402

from minitron.errors import MinitronError  # noqa: E402
from minitron.space.guard import MAX_BODY, NO_FILES, TOO_LONG, RequestGuard  # noqa: E402
from minitron.space.jobs.catalog import Catalog  # noqa: E402
from minitron.space.jobs.request import VisitorError  # noqa: E402
from minitron.space.jobs.results import ResultStore  # noqa: E402
from minitron.space.jobs.service import Service  # noqa: E402

LAYERS = (None, None, None, 5)  # of tiny's sizes, one layer less


@pytest.fixture
def kept() -> Iterator[ResultStore]:
    results = ResultStore()
    yield results
    results.close()


def in_time(is_so: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.01)
    return is_so()


# Files.


def test_the_newest_results_are_kept_and_no_more() -> None:
    kept = ResultStore(most=3)
    made: list[Path] = []
    for _ in range(7):
        made.append(kept.create())
        assert {*kept.root.iterdir()} == {*made[-3:]}
    kept.close()


def test_an_old_result_is_removed_without_a_request() -> None:
    kept = ResultStore(seconds=0.05)
    for _ in range(2):
        (kept.create() / "model.safetensors").write_bytes(b"1")
    assert in_time(lambda: not list(kept.root.iterdir()))
    kept.close()


def test_only_the_results_of_a_visitor_who_left_are_removed(kept: ResultStore) -> None:
    mine, yours, nobodys = kept.create("me"), kept.create("you"), kept.create()
    kept.expire("me", seconds=0.05)
    kept.expire(None, seconds=0)
    assert in_time(lambda: not mine.exists())
    assert yours.exists()
    assert nobodys.exists()


def test_all_results_share_one_timer(kept: ResultStore) -> None:
    before = threading.active_count()
    for number in range(20):
        kept.create(str(number))
    assert in_time(lambda: threading.active_count() <= before + 1)


def test_closing_leaves_no_file_while_a_pruning_still_writes(kept: ResultStore) -> None:
    folder = kept.create()
    (folder / "half").mkdir()
    parent, name = kept.root.parent, kept.root.name
    kept.close()
    kept.close()
    with pytest.raises(FileNotFoundError):
        (folder / "half" / "model.safetensors").write_bytes(b"1")
    assert not list(parent.glob(f"{name}*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_process_that_is_terminated_leaves_no_files(number: int, tmp_path: Path) -> None:
    code = """
import time
from minitron.space.jobs.results import ResultStore
from minitron.space.jobs.process import exit_on_termination
with exit_on_termination():
    (ResultStore().create() / "model.safetensors").write_bytes(b"1")
    print("made", flush=True)
    time.sleep(30)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n"
        assert len(list(tmp_path.rglob("model.safetensors"))) == 1
        process.send_signal(number)
        assert process.wait(60) not in (0, -signal.SIGTERM, -signal.SIGHUP)
    assert not list(tmp_path.iterdir())


# After a pruning.


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One that measures on a few words."""
    with pytest.MonkeyPatch.context() as patch:
        for name, few in {"SAMPLES": 2, "HELD_OUT": 2, "SEQ_LEN": 16}.items():
            patch.setattr(f"minitron.space.jobs.measures.{name}", few)
        service = Service.create(Catalog.of(["tiny"]), tmp_path_factory.mktemp("cache"))
        yield service
        service.close()


@pytest.mark.parametrize("how", ["done", "left", "failed"])
def test_after_a_pruning_freed_memory_is_released_and_no_unfinished_result_stays(
    how: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(
        "minitron.space.jobs.pruning.release_freed_memory", lambda: calls.append("given")
    )
    steps = service.prune("tiny", *LAYERS, visitor="me")
    if how == "done":
        *_, result = steps
        assert result.archive is not None
        service.leave("me")
    elif how == "left":
        next(steps)
        steps.close()
    else:

        def fail(*_: Any, **__: Any) -> None:
            raise VisitorError("no")

        monkeypatch.setattr("minitron.space.jobs.pruning.evaluate", fail)
        with pytest.raises(MinitronError):
            list(steps)
    assert calls == ["given"]
    kept = list(service.pruner.results.root.iterdir())
    assert len(kept) == (1 if how == "done" else 0)
    for path in kept:
        service.pruner.results.remove(path)


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than glibc"
)
def test_releasing_shrinks_the_memory_that_threads_have_freed() -> None:
    """In a process of its own, whose arenas hold nothing else."""
    code = """
import threading
import psutil
from minitron.space.jobs.process import release_freed_memory
def resident(): return psutil.Process().memory_info().rss
kept = []
def work():
    blocks = [bytearray(60_000) for _ in range(1000)]
    kept.append(blocks[-1])  # the arena cannot shrink by itself
thread = threading.Thread(target=work); thread.start(); thread.join()
before = resident(); release_freed_memory(); print(before - resident())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) > 40e6


# Requests that are refused.


def answered(headers: dict[str, str], *pieces: bytes) -> tuple[int, bytes, int]:
    """Status and text of an app behind the guard that says how long the body was, and how many
    pieces were read."""
    left, sent = list(pieces), []

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        length, more = 0, True
        try:
            while more:
                message = await receive()
                length, more = length + len(message["body"]), message["more_body"]
        except HTTPException as error:
            return await PlainTextResponse(error.detail, error.status_code)(scope, receive, send)
        return await PlainTextResponse(str(length))(scope, receive, send)

    async def receive() -> dict[str, Any]:
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": raw}
    asyncio.run(RequestGuard(echo)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"], len(pieces) - len(left)


NAMED_FILE = (  # gradio fetches it, whatever the type of the input
    b'{"data": [{"path": "https://some.where/large", "meta": {"_type": "gradio.FileData"}}]}'
)
MULTIPART = {"content-type": "Multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("headers", "pieces", "answer"),
    [
        ({}, [b"12", b"3"], (200, b"3", 2)),
        ({"content-length": str(MAX_BODY)}, [b"1" * MAX_BODY], (200, str(MAX_BODY).encode(), 1)),
        (MULTIPART, [b"1"] * 3, (415, NO_FILES.encode(), 3)),
        ({"content-length": str(MAX_BODY + 1)}, [b"1"] * 3, (413, TOO_LONG.encode(), 3)),
        ({}, [b"1" * MAX_BODY, b"1", b"1"], (413, TOO_LONG.encode(), 3)),
        ({"content-length": "many"}, [b"1" * MAX_BODY, b"1"], (413, TOO_LONG.encode(), 2)),
        ({}, [b'{"data": ["\\u0047radio.FileData"]}'], (200, b"34", 1)),
        ({}, [NAMED_FILE[:40], NAMED_FILE[40:]], (415, NO_FILES.encode(), 2)),
        ({}, [NAMED_FILE.replace(b"FileD", b"\\u0046ileD")], (415, NO_FILES.encode(), 1)),
        ({}, [NAMED_FILE.decode().encode("utf-16")], (415, NO_FILES.encode(), 1)),
    ],
)
def test_files_and_bodies_longer_than_any_prompt_are_refused(
    headers: dict[str, str], pieces: list[bytes], answer: tuple[int, bytes, int]
) -> None:
    assert answered(headers, *pieces) == answer
