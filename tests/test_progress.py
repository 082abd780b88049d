"""The loss curve is a picture of what was logged, the same for the same losses."""

from pathlib import Path

import pytest

from minitron.training.progress import draw_loss_curve

RECORDS = [
    {"step": 0, "eval_loss": 4.0},
    {"step": 1, "loss": 3.9},
    {"step": 10, "loss": 3.1},
    {"step": 10, "eval_loss": 3.2},
]


def test_the_same_losses_give_the_same_picture(tmp_path: Path) -> None:
    pictures = []
    for name in ("one.png", "two.png"):
        assert draw_loss_curve(tmp_path / name, RECORDS, "forward_kl")
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1]
    assert draw_loss_curve(tmp_path / "three.png", RECORDS[:3], "forward_kl")
    assert (tmp_path / "three.png").read_bytes() != pictures[0]


def test_without_matplotlib_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minitron.training.progress.find_spec", lambda name: None)
    assert not draw_loss_curve(tmp_path / "one.png", RECORDS, "forward_kl")
    assert not list(tmp_path.iterdir())
