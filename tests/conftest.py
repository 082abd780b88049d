"""Fixtures that several files share, and the option `--cpu`.

Some computations depend on `torch.cpu.get_capabilities()`. `--cpu plain` makes it report a
processor without bfloat16 in hardware, `--cpu bfloat16` one with it; by default it reports the real
one. A test that compares numbers sets a dtype, and passes with each option.
"""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.hub_repositories import Account
from tests.hub_server import TOKEN, Hub, serving, talk_to

CAPABILITIES = {
    "plain": {},
    "bfloat16": {"avx512_bf16": True, "amx_bf16": True, "amx_tile": True},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu", choices=sorted(CAPABILITIES), help="the processor that torch reports")


def pytest_collection_finish() -> None:
    """Leave what the imports made out of every later collection of garbage: it stays anyway."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def processor(request: pytest.FixtureRequest) -> Iterator[None]:
    kind = request.config.getoption("--cpu")
    with pytest.MonkeyPatch.context() as monkeypatch:
        if kind is not None:
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict(CAPABILITIES[kind]))
        yield


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on the loopback interface, which this process uses as the user `me`."""
    with serving() as hub:
        hub.accounts |= {
            TOKEN: Account("me"),
            "hf_reads": Account("me", can_write=False),
            "hf_other": Account("Other"),
            "hf_member": Account("us", orgs=("team", "firm"), contributes=("team",)),
        }
        talk_to(hub, monkeypatch, tmp_path / "home", TOKEN)
        yield hub
