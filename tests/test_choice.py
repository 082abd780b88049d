"""A budget without sizes leads to the best of a few shapes near it, and says which rule chose."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minitron
from minitron.candidates import choice, comparison
from minitron.candidates.choice import choose_target
from minitron.candidates.space import scale_widths
from minitron.errors import CorpusError, MinitronError, OutputError, TargetError
from minitron.model.architecture import Architecture
from minitron.model.importance import Importance
from minitron.model.plan import choose_plan, scores_kept, share_kept
from minitron.recipes.pruning import PruneRecipe
from minitron.scores.weight_scores import random_scores
from minitron.sources.opening import open_source
from minitron.verbs import prune as pruning
from tests.tiny import SIZES, tiny_folder

WHOLE = Architecture("nemotron", **SIZES)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("model") / "source"))


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ids") / "ids.npy"
    np.save(path, np.random.default_rng(1).integers(1, 101, size=(12, 9)))
    return str(path)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("scores") / "scores.safetensors"
    random_scores(WHOLE, 0).save(path)
    return str(path)


def chosen(source: str, **options: Any) -> choice.Choice:
    return choose_target(open_source(source), PruneRecipe(source, "out", **options))


@pytest.mark.parametrize("ratio", [0.75, 0.5])
def test_text_chooses_the_lowest_loss_of_few_shapes_near_the_ratio(
    ratio: float, source: str, ids: str, scores: str
) -> None:
    found = chosen(source, ratio=ratio, importance=scores, held_out=ids)
    assert abs(found.target.parameters / WHOLE.parameters / ratio - 1) <= 0.01
    assert found.record is not None
    candidates = found.record["candidates"]
    assert len(candidates) == 8
    assert len({one["num_hidden_layers"] for one in candidates}) == 2
    losses = [one["loss"] for one in candidates]
    assert losses[0] == min(losses)
    assert all(abs(one["parameters"] / WHOLE.parameters / ratio - 1) <= 0.01 for one in candidates)
    first = {key: candidates[0][key] for key in ("hidden_size", "intermediate_size")}
    assert first == {key: getattr(found.target, key) for key in first}
    assert found.reason.startswith(f"chose hidden_size {found.target.hidden_size}, ")
    assert (
        f"loss {losses[0]:.4f} as cut, the lowest of 8 shapes within 1% of the budget"
        in found.reason
    )
    assert found.reason == found.record["reason"]


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, "after reconstruction"),
        ({"reconstruct": "none"}, "as cut"),
        ({"scores": "modelopt"}, "as cut"),
        ({"scores": "modelopt", "reconstruct": "auto"}, "after reconstruction"),
    ],
)
def test_shapes_are_compared_reconstructed_where_the_result_is(
    options: dict[str, Any], how: str, source: str, ids: str
) -> None:
    found = chosen(source, ratio=0.6, corpus=ids, max_candidates=2, **options)
    assert found.record is not None
    assert found.record["measured"].startswith(f"Loss {how}, in nats a token on ")
    state = "reconstructed" if how == "after reconstruction" else "as cut"
    assert f"{state}, the lowest of 2 shapes" in found.reason


def test_a_run_that_continues_keeps_the_sizes_that_it_has_chosen(
    source: str, ids: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"ratio": 0.6, "corpus": ids, "max_candidates": 2}
    minitron.prune(source, str(tmp_path / "whole"), **asked)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pruning, "reconstruct", stop)
        with pytest.raises(KeyboardInterrupt):
            minitron.prune(source, str(tmp_path / "out"), **asked)
    chosen_again = []

    def choose(*arguments: Any) -> choice.Choice:
        chosen_again.append(arguments)
        return choose_target(*arguments)

    monkeypatch.setattr(pruning, "choose_target", choose)
    with pytest.raises(OutputError, match="was begun with max_candidates 2"):
        minitron.prune(source, str(tmp_path / "out"), **{**asked, "max_candidates": 1})
    assert len(chosen_again) == 1
    minitron.prune(source, str(tmp_path / "out"), **asked)
    assert len(chosen_again) == 1
    whole, out = (
        json.loads((tmp_path / name / "minitron.json").read_text()) for name in ("whole", "out")
    )
    assert out["search"] == whole["search"]
    assert out["weights"] == whole["weights"]


def test_text_beside_an_importance_is_to_fit_to(source: str, ids: str, scores: str) -> None:
    asked: dict[str, Any] = {"ratio": 0.6, "max_candidates": 2, "importance": scores}
    found = chosen(source, **asked, corpus=ids)
    assert found.record is not None
    assert "on which candidates are not reconstructed. Reconst" in found.record["measured"]
    with pytest.raises(TargetError, match="--importance and --corpus are both given"):
        chosen(source, **asked, corpus=ids, reconstruct="none")


def test_parameters_choose_as_their_ratio_does(source: str, ids: str, scores: str) -> None:
    options: dict[str, Any] = {"importance": scores, "held_out": ids, "max_candidates": 3}
    parameters = f"{round(0.6 * WHOLE.parameters)}"
    by_ratio = chosen(source, ratio=0.6, **options)
    assert chosen(source, params=parameters, **options).record == by_ratio.record


def test_scores_alone_choose_the_shape_that_keeps_most_of_them(source: str, scores: str) -> None:
    found = chosen(source, ratio=0.6, importance=scores)
    importance = Importance.load(Path(scores))

    def kept(target: Architecture) -> float:
        return scores_kept(share_kept(choose_plan(importance, WHOLE, target), importance))

    others = [one for one in shapes_near(0.6) if kept(one) > kept(found.target)]
    assert others == []
    assert "it keeps most of its random scores" in found.reason
    assert "no text is named to compare them on (--held-out)" in found.reason


def test_what_is_compared_is_ranked_by_no_score_where_all_is_or_scores_are_random() -> None:
    assert choice.shapes_text(6, 6, is_random=False) == "all 6 shapes"
    assert "keep most of their scores" in choice.shapes_text(8, 1033, is_random=False)
    drawn = choice.shapes_text(8, 1033, is_random=True)
    assert drawn.startswith("8 of 1,033 shapes: those that random scores rank first")


def shapes_near(ratio: float) -> list[Architecture]:
    """Every shape of the space, by hand, that is within 1 % of a ratio."""
    near = []
    for layers in (3, 4):
        for heads in (4, 6):
            for hidden in range(2, 43, 2):
                for ffn in range(2, 67, 2):
                    at = WHOLE.resized(
                        num_hidden_layers=layers,
                        num_attention_heads=heads,
                        hidden_size=hidden,
                        intermediate_size=ffn,
                    )
                    fits = 0.5 <= (ffn / hidden) / (66 / 42) <= 2
                    is_part = hidden in {4, 6, 8, 10, 14, 18, 20, 22, 24, 28, 32, 34, 36, 38, 42}
                    if (
                        fits
                        and is_part
                        and abs(at.parameters / WHOLE.parameters / ratio - 1) <= 0.01
                    ):
                        near.append(at)
    return near


@pytest.mark.parametrize("by", ["magnitude", "random"])
def test_without_text_both_widths_go_by_one_factor_and_it_says_so(by: Any, source: str) -> None:
    found = chosen(source, ratio=0.5, scores=by)
    assert found.target == scale_widths(WHOLE, 0.5)
    assert found.importance is None
    assert "one factor, since no text is named to compare shapes on (--corpus)" in found.reason
    assert found.record is not None
    assert found.record["reason"] == found.reason


def test_a_text_too_short_to_part_leaves_the_choice_to_the_scores(
    source: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "ids.npy", np.arange(1, 10)[None])
    found = chosen(source, ratio=0.6, corpus=str(tmp_path / "ids.npy"))
    assert "is too short to hold out a part of it" in found.reason
    assert found.importance is not None
    assert found.importance.made_by["samples"] == 1


def test_low_disk_reads_no_weights_for_a_comparison(
    source: str, ids: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "source_loss", None)
    found = chosen(source, ratio=0.6, corpus=ids, low_disk=True)
    assert "with --low-disk every comparison would read the weights again" in found.reason


def test_the_choice_is_on_record_and_on_the_card(source: str, ids: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    minitron.prune(source, str(out), ratio=0.6, corpus=ids, max_candidates=3)
    record = json.loads((out / "minitron.json").read_text())
    assert len(record["search"]["candidates"]) == 3
    assert record["recipe"]["max_candidates"] == 3
    assert record["search"]["reason"] in (out / "README.md").read_text()
    minitron.remake(str(out), str(tmp_path / "again"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"memory": "100kB", "scores": "magnitude"}, "compared on text: name --corpus or --held"),
        ({"params": "9B", "scores": "random"}, "--params is 9B, and .* has [0-9,]*: pruning only"),
        ({"ratio": 1.5, "scores": "random"}, "--ratio is 1.5: it must be above 0 and at most 1"),
        ({"ratio": 0.5}, "ranking by activations needs --corpus"),
        ({"ratio": 0.5, "max_candidates": 0, "scores": "random", "corpus": "random"}, "it must be"),
    ],
)
def test_a_budget_that_cannot_be_met_is_reported(
    options: dict[str, Any], says: str, source: str
) -> None:
    with pytest.raises(MinitronError, match=says):
        chosen(source, **options)


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("qwen") / "source"
    return str(tiny_folder(path, "qwen2", hidden_size=48))


@pytest.fixture(scope="module")
def its_scores(square: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("scores") / "scores"
    random_scores(Architecture.from_config(open_source(square).config), 0).save(path)
    return str(path)


class TestCompatible:
    """Qwen2's engines derive head_dim from hidden_size / heads; llama.cpp wants it square."""

    def test_a_budget_keeps_to_sizes_that_engines_open(
        self, square: str, its_scores: str, ids: str
    ) -> None:
        asked: dict[str, Any] = {"ratio": 0.7, "importance": its_scores, "held_out": ids}
        report = minitron.search(square, **asked)
        assert report.counts["closed_to_engines"] > 10
        assert report.left_out is not None
        assert "that llama.cpp, mlx-lm, vLLM cannot open (--no-compatible" in report.left_out
        assert report.left_out[1:] in report.to_markdown()
        for candidate in report.candidates:
            at = candidate.architecture
            assert at.hidden_size == at.num_attention_heads * at.head_dim
        every = minitron.search(square, compatible=False, max_candidates=999, **asked)
        assert every.counts["compared"] > report.counts["compared"]
        assert every.left_out is None
        target = chosen(square, **asked).target
        assert target.hidden_size == target.num_attention_heads * target.head_dim

    def test_a_source_that_engines_do_not_open_is_held_to_nothing(
        self, tmp_path: Path, ids: str
    ) -> None:
        source = str(tiny_folder(tmp_path / "odd", "qwen2"))  # 6 heads of 8 in 42
        report = minitron.search(source, ratio=0.7, scores="random", held_out=ids)
        assert report.counts["closed_to_engines"] == 0
        strict = minitron.search(source, ratio=0.7, scores="random", held_out=ids, compatible=True)
        assert strict.counts["closed_to_engines"] > 10
        assert {one.architecture.hidden_size for one in strict.candidates} == {32}

    def test_where_engines_open_nothing_all_is_compared_unless_it_is_asked(
        self, square: str, its_scores: str, ids: str
    ) -> None:
        asked: dict[str, Any] = {"ratio": 0.9, "importance": its_scores, "held_out": ids}
        asked |= {"multiple_of": 46, "min_layers": 4}  # hidden sizes 46 and 48, heads 4 and 6
        report = minitron.search(square, **asked)
        assert report.counts["closed_to_engines"] == 0
        assert report.left_out is not None
        assert "llama.cpp, mlx-lm, vLLM: none is left out" in report.left_out
        with pytest.raises(TargetError, match="opens in llama.cpp, mlx-lm, vLLM: give another"):
            minitron.search(square, compatible=True, **asked)

    def test_named_sizes_are_refused_with_those_that_go(self, square: str, tmp_path: Path) -> None:
        options: dict[str, Any] = {"scores": "random", "compatible": True}
        with pytest.raises(
            TargetError,
            match=r"cannot open hidden_size 32 with 6 heads of 8 .*: "
            r"give --hidden-size 48 or --num-attention-heads 4, or --no-compatible",
        ):
            minitron.prune(square, str(tmp_path / "out"), hidden_size=32, **options)
        minitron.prune(
            square, str(tmp_path / "out"), hidden_size=32, num_attention_heads=4, **options
        )

    def test_one_factor_that_engines_do_not_open_is_refused_where_they_must(
        self, square: str
    ) -> None:
        assert chosen(square, ratio=0.5, scores="random").target.hidden_size < 48
        with pytest.raises(TargetError, match="cannot open that"):
            chosen(square, ratio=0.5, scores="random", compatible=True)


def test_nothing_is_compared_where_text_is_missing(source: str) -> None:
    with pytest.raises(CorpusError, match="needs --corpus"):
        chosen(source, ratio=0.5)
