"""Measure memory and temporary files of a Space under load: requests, prunings, new visitors.

`python app.py` runs in a separate process on 127.0.0.1, with an empty folder for temporary files.
After a warm-up of each kind, prints resident memory and temporary files in MB after every part;
they do not grow if the last parts are equal.

    python benchmarks/space_memory.py --requests 2000 --prunings 30 --visitors 600
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen

import psutil

import minitron.space

PARTS = 4  # of each kind, a printed line per part
WARM_UP = {"requests": 50, "prunings": 5, "visitors": 120}


class Space:
    """A running Space, and the requests to it."""

    def __init__(self, place: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.place = f"http://127.0.0.1:{port}/gradio_api", place
        own = {
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_TEMP_DIR": str(place / "gradio"),
            "TMPDIR": str(place),
        }
        app = Path(minitron.space.__file__).with_name("app.py")
        self.process = subprocess.Popen(
            [sys.executable, app], env={**os.environ, **own}, stdout=subprocess.DEVNULL
        )
        self.session = uuid.uuid4().hex
        self.functions = self._functions()

    def _functions(self) -> dict[str, int]:
        """The ids of the named endpoints and of the load event, when the Space answers."""
        for _ in range(600):
            try:
                with urlopen(f"{self.url[: -len('/gradio_api')]}/config", timeout=5) as answer:
                    found = json.load(answer)["dependencies"]
            except OSError:
                time.sleep(0.2)
                continue
            named = {one["api_name"]: one["id"] for one in found if one["api_name"]}
            (load,) = (one["id"] for one in found if ["load"] in [t[1:] for t in one["targets"]])
            return {**named, "load": load}
        raise SystemExit("the Space does not answer")

    def ask(self, function: str, data: list[object], session: str) -> None:
        """Send one event and wait for its end."""
        body = {"data": data, "fn_index": self.functions[function], "session_hash": session}
        headers = {"Content-Type": "application/json"}
        urlopen(Request(f"{self.url}/queue/join", json.dumps(body).encode(), headers)).close()
        with urlopen(f"{self.url}/queue/data?session_hash={session}", timeout=300) as lines:
            for line in lines:
                if b"process_completed" in line:
                    assert b'"success":true' in line.replace(b" ", b""), line[:500]
                    return

    def request(self, number: int) -> None:
        """Generate a text, as a visitor who has visited before."""
        self.ask("generate", ["tiny", f"{number}: the", 4, 1.0, 1.0, number], self.session)

    def pruning(self, number: int) -> None:
        """Prune, and receive the archive."""
        sizes = [(192, 160, 128)[number % 3], 608, None, 5 + number % 2]
        self.ask("prune", ["tiny", *sizes], self.session)

    def visitor(self, number: int) -> None:
        """Load the page as a new visitor, send one request and leave."""
        session = uuid.uuid4().hex
        with urlopen(f"{self.url}/heartbeat/{session}", timeout=30) as beats:
            beats.readline()
            self.ask("load", [], session)
            self.ask("generate", ["tiny", f"{number}: the", 1, 1.0, 1.0, number], session)

    @property
    def megabytes(self) -> float:
        """Resident memory, in MB."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 1e6)

    @property
    def file_megabytes(self) -> float:
        """Size of temporary files, in MB."""
        return sum(p.stat().st_size for p in self.place.rglob("*") if p.is_file()) / 1e6


def main() -> None:
    """Send the requests and print the sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    for kind in WARM_UP:
        parser.add_argument(f"--{kind}", type=int, default=0)
    times = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as place:
        space = Space(Path(place))
        ways: dict[str, Callable[[int], None]] = {
            "requests": space.request,
            "prunings": space.pruning,
            "visitors": space.visitor,
        }
        try:
            for kind, way in ways.items():
                for number in range(WARM_UP[kind] if times[kind] else 0):
                    way(number)
            print(
                f"{'warm':>16}: {space.megabytes:6.0f} MB, files {space.file_megabytes:5.0f} MB",
                flush=True,
            )
            for kind, way in ways.items():
                for part in range(PARTS if times[kind] else 0):
                    begun = time.perf_counter()
                    each = times[kind] // PARTS
                    for number in range(each):
                        way(part * each + number)
                    print(
                        f"{each:>7} {kind}: {space.megabytes:6.0f} MB, "
                        f"files {space.file_megabytes:5.0f} MB, "
                        f"{(time.perf_counter() - begun) / max(each, 1) * 1e3:.0f} ms each",
                        flush=True,
                    )
        finally:
            space.process.terminate()
            space.process.wait(60)
        left = list(Path(place).rglob("*.zip"))
        print(f"after SIGTERM: {len(left)} zips left")


if __name__ == "__main__":
    main()
