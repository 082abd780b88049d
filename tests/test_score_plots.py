"""A picture of scores is drawn, shows the right shares, and is refused before anything is slow."""

from pathlib import Path
from typing import Any

import pytest
import torch

from minitron import measure_importance
from minitron.errors import MissingExtraError, OutputError, TargetError
from minitron.model.architecture import Architecture
from minitron.model.importance import Importance
from minitron.scores import score_plots
from minitron.scores.score_plots import draw_scores, shares_kept
from minitron.scores.weight_scores import random_scores
from tests.tiny import SIZES, tiny_folder

MODEL = Architecture("nemotron", *[SIZES[key] for key in SIZES])


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_is_drawn_and_the_same_scores_give_the_same_bytes(
    ending: str, tmp_path: Path
) -> None:
    scores = random_scores(MODEL, 0)
    for name in ("one", "two"):
        draw_scores(scores, MODEL, tmp_path / f"{name}.{ending}")
    one, two = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("one", "two"))
    assert len(one) > 5000
    if ending == "png":
        assert one == two


def test_an_axis_that_was_not_measured_is_left_out(tmp_path: Path) -> None:
    draw_scores(Importance({}, hidden=torch.rand(42)), MODEL, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").exists()


def test_the_flag_draws_beside_measuring(tmp_path: Path) -> None:
    folder, picture = tiny_folder(tmp_path / "model"), tmp_path / "scores.png"
    measure_importance(str(folder), str(tmp_path / "out"), scores="random", plot=str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_shares_are_those_of_the_highest_scores_and_of_all_parameters() -> None:
    importance = Importance(
        {},
        layers=torch.tensor([4.0, 1.0, 3.0, 2.0]).double(),
        heads=torch.tensor([[3.0, 2.0, 1.0, 6.0, 5.0, 4.0]] * 4).double(),
    )
    layers = shares_kept(importance, MODEL, "layers")
    assert [score for _, score in layers] == pytest.approx([0.4, 0.7, 0.9, 1.0])
    for kept, (parameters, _) in enumerate(layers, 1):
        smaller = MODEL.resized(num_hidden_layers=kept)
        assert parameters == smaller.parameters / MODEL.parameters
    heads = shares_kept(importance, MODEL, "heads")  # one, two, three in each of two groups
    assert [score for _, score in heads] == pytest.approx([9 / 21, 16 / 21, 1.0])
    assert heads[0][0] == MODEL.resized(num_attention_heads=2).parameters / MODEL.parameters


def test_heads_that_share_no_kv_head_are_shown_one_by_one() -> None:
    even = MODEL.resized(num_key_value_heads=6)
    importance = Importance({}, heads=torch.tensor([[3.0, 2.0, 1.0, 6.0, 5.0, 4.0]] * 4).double())
    heads = shares_kept(importance, even, "heads")
    assert [score for _, score in heads] == pytest.approx([n / 21 for n in (6, 11, 15, 18, 20, 21)])
    assert heads[0][0] == even.with_heads(1).parameters / even.parameters


def refused(plot: Path, tmp_path: Path) -> Any:
    folder = tiny_folder(tmp_path / "model")
    return measure_importance(str(folder), str(tmp_path / "out"), scores="random", plot=str(plot))


def test_without_matplotlib_the_extra_is_named_and_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_plots, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'minitron\[plots\]'"):
        refused(tmp_path / "a.png", tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_picture_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"must end in \.png, \.svg, \.pdf"):
        refused(tmp_path / "a.jpg", tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(OutputError, match="exists already"):
        refused(tmp_path / "a.png", tmp_path)
    assert not (tmp_path / "out").exists()
