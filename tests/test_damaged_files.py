"""Whatever is damaged, a command ends well or in one line: some tries of each kind, seeded."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parent.parent / "benchmarks" / "damaged_files.py"
TRIES = 39  # three of each file; thousands by hand, as the module says


@pytest.fixture(scope="module")
def damaged_files() -> ModuleType:
    spec = importlib.util.spec_from_file_location("damaged_files", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["damaged_files"] = module  # dataclasses ask for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="bounds memory by /proc")
def test_a_damaged_file_ends_in_no_traceback_no_crash_and_no_hang(
    damaged_files: ModuleType, tmp_path: Path
) -> None:
    damaged_files.write_good_files(tmp_path)
    ends = [
        (case.file, end.end, end.told) for case, _, end in damaged_files.tries(tmp_path, TRIES, 0)
    ]
    assert {file for file, _, _ in ends} == {case.file for case in damaged_files.cases()}
    assert [end for end in ends if end[1] not in ("right", "line")] == []
    assert {"right", "line"} <= {end for _, end, _ in ends}
