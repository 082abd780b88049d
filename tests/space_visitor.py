"""Start the Space in a separate process, for tests and benchmarks that visit it."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import psutil

import minitron.space

CHROMIUM = "/usr/bin/chromium"
QUIET_BROWSER = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
START_SECONDS = 15.0


@dataclass(frozen=True)
class RunningSpace:
    """Its URL and its process."""

    url: str
    pid: int

    @property
    def memory(self) -> int:
        """Resident memory of the process, in bytes."""
        return int(psutil.Process(self.pid).memory_info().rss)


@contextmanager
def running_space(place: Path, **environment: str) -> Iterator[RunningSpace]:
    """Run `python app.py` in a copy of the Space's folder until the block ends."""
    folder = place / "space"
    shutil.copytree(Path(minitron.space.__file__).parent, folder)
    port = free_port()
    output = (place / "output.txt").open("w")
    process = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=folder,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={
            **os.environ,
            "GRADIO_SERVER_PORT": str(port),
            "MINITRON_SPACE_CACHE": str(place / "cache"),
            "GRADIO_TEMP_DIR": str(place / "gradio"),
            **environment,
        },
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, place / "output.txt")
        yield RunningSpace(url, process.pid)
    finally:
        process.terminate()
        process.wait(60)
        output.close()


def free_port() -> int:
    """A port of the loopback interface that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes], output: Path) -> None:
    """Wait until the URL answers; fail with the output if the process ends or is too slow."""
    deadline = time.monotonic() + 8 * START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, output.read_text()
        try:
            with urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer: {output.read_text()}")
