"""What the processor is taken for: `--cpu plain` has no bfloat16 in hardware, `--cpu bfloat16` has.

Some computations follow `torch.cpu.get_capabilities()`. Without the option they follow this
machine's; a test that compares numbers names its dtype and passes with each.
"""

from collections.abc import Iterator

import pytest
import torch

CAPABILITIES = {
    "plain": {},
    "bfloat16": {"avx512_bf16": True, "amx_bf16": True, "amx_tile": True},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu", choices=sorted(CAPABILITIES), help="what the processor is taken for")


@pytest.fixture(autouse=True, scope="session")
def processor(request: pytest.FixtureRequest) -> Iterator[None]:
    kind = request.config.getoption("--cpu")
    with pytest.MonkeyPatch.context() as monkeypatch:
        if kind is not None:
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict(CAPABILITIES[kind]))
        yield
