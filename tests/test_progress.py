"""Progress is shown by one rule, and the loss curve is a picture of what was logged."""

import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from minitron.progress import Progress
from minitron.training.progress import draw_loss_curve

Wait = Callable[[float], None]

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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Wait:
    """Moves a clock that stands still otherwise, and lets progress be logged."""
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("minitron.progress.time", clock)
    caplog.set_level(logging.INFO, "minitron")

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_elsewhere_than_in_a_terminal_there_is_a_line_each_30_seconds_at_most(
    wait: Wait,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Progress("sample", total=4000, unit="token") as progress:
        for _ in range(8):
            wait(10)
            progress.advance(500)
    assert caplog.messages == [
        "sample: 1,500 of 4,000 tokens (38%), 50 tokens a second, 00:50 left",
        "sample: 3,000 of 4,000 tokens (75%), 50 tokens a second, 00:20 left",
    ]
    assert capfd.readouterr() == ("", "")


def test_work_that_ends_sooner_is_not_logged(wait: Wait, caplog: pytest.LogCaptureFixture) -> None:
    with Progress("write", total=2, unit="byte") as progress:
        wait(29)
        progress.advance()
    assert caplog.messages == []


def test_what_an_earlier_run_did_counts_for_no_rate(
    wait: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    with Progress("train\x1b[2J", total=900, done=300, unit="token") as progress:
        wait(40)
        progress.note(loss="3.101")
        progress.advance(20)
    assert caplog.messages == [
        "train\\x1b[2J: 320 of 900 tokens (36%), 0.50 tokens a second, 19:20 left, loss 3.101"
    ]


def test_a_process_that_is_not_the_first_shows_nothing(
    wait: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    with Progress("train", total=9, unit="token", is_shown=False) as progress:
        wait(40)
        progress.advance()
    assert caplog.messages == []


def test_in_a_terminal_there_is_a_bar_once_the_work_takes_a_second(
    wait: Wait,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    with Progress("write", total=10, unit="byte") as progress:
        progress.advance(10)
    assert shown.getvalue() == ""
    monkeypatch.setattr("minitron.progress._DELAY", 0)
    with Progress("sample", total=4000, unit="token") as progress:
        progress.note(loss="3.101")
        wait(40)
        progress.advance(4000)
    assert "sample: 100%" in shown.getvalue()
    assert "4.00k/4.00k" in shown.getvalue()
    assert "token/s, loss=3.101" in shown.getvalue()
    assert shown.getvalue().endswith("\n")
    assert caplog.messages == []


def test_a_terminal_that_does_not_say_its_size_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.openpty()  # of 0 lines and 0 columns
    monkeypatch.setattr("minitron.progress._DELAY", 0)
    with os.fdopen(reader, "rb", buffering=0) as shown, os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress("sample", total=4, unit="token") as progress:
            progress.advance(4)
        monkeypatch.undo()
        text = shown.read(4096).decode()
    assert "sample: 100%" in text
