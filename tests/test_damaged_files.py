"""Whatever is damaged, a command ends well or in one line: some tries of each kind, seeded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "benchmarks" / "damaged_files.py"
KINDS = 14  # of files
TRIES = 3 * KINDS  # thousands by hand, as the module says


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="bounds memory by /proc")
def test_a_damaged_file_ends_in_no_traceback_no_crash_and_no_hang() -> None:
    # A process of its own, with one thread: it forks, and threads do not live on in a fork.
    done = subprocess.run(
        [sys.executable, PATH, "--count", str(TRIES), "--seed", "0"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "---" not in done.stdout, done.stdout
    header, *rows = [line.split() for line in done.stdout.splitlines()]
    assert header == ["file", "right", "line", "traceback", "crash", "hang"]
    assert len(rows) == KINDS
    right, line, *bad = [sum(map(int, column)) for column in list(zip(*rows, strict=True))[1:]]
    assert right > 0
    assert line > 0
    assert right + line == TRIES
    assert bad == [0, 0, 0]
