"""Surroundings: the system and packages that minitron runs with, and those it was tested with.

The ranges of packages are in setup.cfg, and are read from the metadata of the installation.
Needs the standard library, and `packaging` where something is installed.

    untested_packages()   # [("transformers", "5.30.0", "<5.25,>=5.20")]
"""

import logging
import os
from importlib.metadata import PackageNotFoundError, distribution, version

from minitron.errors import MinitronError, one_line

_POSIX = ("pread", "preadv", "sysconf")  # of os: what reads files needs them
_OF_TESTS = 'extra == "test"'  # a requirement of minitron's own tests

logger = logging.getLogger(__name__)


def check_system() -> None:
    """Raise MinitronError on a system whose files cannot be read or locked as they must be."""
    missing = [f"os.{name}" for name in _POSIX if not hasattr(os, name)]
    try:
        import fcntl  # noqa: F401
    except ImportError:
        missing.append("fcntl")
    if missing:
        raise MinitronError(
            "minitron runs on Linux and macOS, not where Python has no "
            f"{', '.join(missing)}: on Windows run it in WSL ('wsl --install', then pip there)"
        )


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def note_untested() -> None:
    """Log one line that names what is installed outside of the tested ranges; nothing if none."""
    packages = untested_packages()
    if not packages:
        return
    ranges = " ".join(f"'{name}{accepted}'" for name, _, accepted in packages)
    installed = ", ".join(f"{name} {its}" for name, its, _ in packages)
    logger.warning(
        "%s",
        one_line(
            f"minitron {version('minitron')} was not tested with {installed}: results may be "
            f"wrong; pip install {ranges}"
        ),
    )


def untested_packages() -> list[tuple[str, str, str]]:
    """(name, installed version, tested versions) of each package outside of its range."""
    try:
        requires = distribution("minitron").requires or []
    except PackageNotFoundError:  # not installed: there is no metadata
        return []
    wanted = [line for line in requires if _OF_TESTS not in line]
    found = []
    for line in dict.fromkeys(line.partition(";")[0].strip() for line in wanted):
        name, accepted = _split(line)
        try:
            installed = version(name) or "of unknown version"  # None where metadata is damaged
        except PackageNotFoundError:  # of an extra
            continue
        if not _accepts(accepted, installed):
            found.append((name, installed, accepted))
    return found


def _split(requirement: str) -> tuple[str, str]:
    """`gradio[mcp]<7,>=6.29.1` as its name and its range."""
    start = min(
        (place for sign in "<>=!~" if (place := requirement.find(sign)) >= 0),
        default=len(requirement),
    )
    return requirement[:start].partition("[")[0].strip(), requirement[start:].strip()


def _accepts(accepted: str, installed: str) -> bool:
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        return SpecifierSet(accepted).contains(Version(installed), prereleases=True)
    except InvalidVersion:  # of a build by hand
        return False
