"""docs/family.md says what the result files say."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "family.md"


@pytest.fixture
def family_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "family_page", ROOT / "benchmarks" / "family_page.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "family_page", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PICTURES", tmp_path)
    return module


def test_the_page_is_what_the_result_files_make(family_page: ModuleType) -> None:
    assert PAGE.read_text() == family_page.page(), "run: python benchmarks/family_page.py"


def test_every_picture_of_the_page_is_there() -> None:
    named = re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE.read_text())
    assert named
    assert all((PAGE.parent / name).exists() for name in named)


def test_a_changed_result_changes_the_page(
    family_page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tmp_path / "family" / "t14"
    found.mkdir(parents=True)
    for seed, loss in enumerate((4.0, 4.5)):
        (found / f"pruned-distill-{seed}.json").write_text(
            f'{{"before": 5.0, "loss": {loss}, "tokens": 7, "parameters": 11}}'
        )
    monkeypatch.setattr(family_page, "RESULTS", tmp_path)
    assert "| 11 | 5.0000 | 4.2500 ± 0.3536 | 2 |" in family_page.page()
