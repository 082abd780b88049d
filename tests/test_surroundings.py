"""What minitron runs among: the versions it was tested with, and systems it cannot run on."""

import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from minitron import space, surroundings
from minitron.publish.space_folder import own_wheel
from minitron.space.jobs.semaphore import compute_semaphore

ROOT = Path(__file__).parent.parent
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
EXTRAS = [name for name in SETUP["options.extras_require"] if name != "test"]
REQUIRED = {
    requirement.name.lower().replace("_", "-"): requirement
    for block in (
        SETUP["options"]["install_requires"],
        *(SETUP["options.extras_require"][extra] for extra in EXTRAS),
    )
    for requirement in map(Requirement, block.split("\n")[1:])
}


def run(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def with_versions(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    monkeypatch.setattr(surroundings, "version", lambda name: installed.get(name) or version(name))


def test_what_is_installed_here_was_tested() -> None:
    assert surroundings.untested_packages() == []


@pytest.mark.parametrize(
    "other",
    ["5.19.0", "5.25.0", "6.0.0", "4.57.6", "5.25.0.dev0", "unknown", "5.24.0-mine", "2.0-a-git"],
)
def test_a_version_outside_of_the_range_is_named_in_one_line_with_what_to_do(
    other: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_versions(monkeypatch, transformers=other)
    surroundings.note_untested()
    [record] = caplog.records
    line = record.getMessage()
    accepted = REQUIRED["transformers"].specifier
    assert re.fullmatch(
        rf"minitron \S+ was not tested with transformers {other}: results may be wrong; "
        rf"pip install 'transformers(?P<range>\S+)'",
        line,
    )
    assert Requirement(line.partition("'")[2].rstrip("'")).specifier == accepted


@pytest.mark.parametrize("inside", ["5.20.0", "5.22.1", "5.24.3", "5.24.0.dev0"])
def test_nothing_is_reported_of_a_version_inside(
    inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_versions(monkeypatch, transformers=inside)
    assert surroundings.untested_packages() == []


def test_a_package_whose_metadata_are_damaged_is_named_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        surroundings, "version", lambda name: None if name == "tokenizers" else version(name)
    )
    [(name, installed, _)] = surroundings.untested_packages()
    assert (name, installed) == ("tokenizers", "of unknown version")


def test_several_are_named_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_versions(monkeypatch, numpy="1.26.4", gradio="7.0.0")
    surroundings.note_untested()
    [record] = caplog.records
    assert "not tested with numpy 1.26.4, gradio 7.0.0: results" in record.getMessage()


FAKED = """
import importlib.metadata as metadata
real = metadata.version
metadata.version = lambda name: "9.0.0" if name == "transformers" else real(name)
import sys
"""


def test_importing_says_it_once_on_stderr_and_imports_nothing_heavy() -> None:
    ran = run(FAKED + "import minitron; import minitron.errors; print('torch' in sys.modules)")
    assert ran.stdout == "False\n"
    assert ran.stderr.count("\n") == 1
    assert "was not tested with transformers 9.0.0" in ran.stderr
    assert run("import minitron").stderr == ""


def test_every_dependency_has_a_bound_on_both_sides_but_for_what_only_parses() -> None:
    open_ended = {
        name
        for name, requirement in REQUIRED.items()
        if {"<", ">="} - {part.operator for part in requirement.specifier}
    }
    assert open_ended == {"packaging", "rouge-score"}


def test_the_lowest_versions_that_ci_installs_are_the_lowest_allowed() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    lowest = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    allowed = {
        name: next(part.version for part in requirement.specifier if part.operator == ">=")
        for name, requirement in REQUIRED.items()
    }
    del allowed["torch"]
    for name, least in allowed.items():
        assert Requirement(f"x=={least}").specifier.contains(lowest[name]), name


@pytest.mark.parametrize(
    "removal",
    [
        "sys.modules['fcntl'] = None",
        "del os.pread",
        "del os.preadv",
        "sys.modules['fcntl'] = None; del os.pread, os.sysconf",
    ],
)
def test_a_system_without_posix_files_is_refused_in_one_line(removal: str, tmp_path: Path) -> None:
    ran = run(
        f"import os, sys\n{removal}\nfrom minitron.cli import main\n"
        f"main(['convert', 'tiny', {str(tmp_path / 'out')!r}])"
    )
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "minitron runs on Linux and macOS" in ran.stderr
    assert "WSL" in ran.stderr
    assert not list(tmp_path.iterdir())


def test_help_answers_on_any_system() -> None:
    code = (
        "import os, sys\nsys.modules['fcntl'] = None\ndel os.pread\nfrom minitron.cli import main\n"
    )
    assert "quickstart" in run(code + "main(['--help'])").stdout


def test_the_verbs_of_python_are_refused_alike() -> None:
    code = "import sys\nsys.modules['fcntl'] = None\nimport minitron\n"
    code += "try:\n    minitron.prune\nexcept minitron.MinitronError as error:\n    print(error)"
    assert "no fcntl: on Windows run it in WSL" in run(code).stdout


def test_cores_are_counted_where_no_affinity_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert surroundings.cores() == 3
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    assert compute_semaphore()._free == 3


def test_a_space_gets_the_same_ranges() -> None:
    needed = {Requirement(line).name: Requirement(line) for line in own_wheel().needs("space")}
    for name in ("transformers", "huggingface_hub", "datasets", "gradio"):
        assert needed[name].specifier == REQUIRED[name.replace("_", "-")].specifier
    readme = (Path(space.__file__).parent / "README.md").read_text()
    built_with = re.findall(r"^sdk_version: (\S+)$", readme, re.MULTILINE)[0]
    assert REQUIRED["gradio"].specifier.contains(built_with)


def test_the_classifiers_name_the_systems_that_are_supported() -> None:
    systems = re.findall(r"Operating System :: (.*)", SETUP["metadata"]["classifiers"])
    assert systems == ["POSIX :: Linux", "MacOS"]
