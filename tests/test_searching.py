"""Search ranks what a budget admits by the loss that the written model would have."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import minitron
from minitron.candidates import comparison, fit, report, shortlist
from minitron.candidates.budget import Use, memory_needed
from minitron.candidates.latency import Corners, LatencyTable
from minitron.candidates.report import Candidate, SearchReport
from minitron.candidates.space import default_space
from minitron.cli import main
from minitron.errors import MinitronError, OutputError, TargetError
from minitron.model.architecture import Architecture
from minitron.model.importance import Importance
from minitron.model.plan import choose_plan
from minitron.reconstruction import reconstruct
from minitron.reconstruction.projection import covariance_of
from minitron.reconstruction.reconstruct import fitted_model
from minitron.scores.weight_scores import random_scores
from minitron.sources.loading import loaded_bytes
from minitron.sources.opening import open_source
from minitron.verbs import search as searching
from tests.tiny import SIZES, tiny_folder, tiny_model

WHOLE = Architecture("nemotron", **SIZES)
IDENTITY = 2  # the layer that does nothing


def planted(folder: Path) -> str:
    """A model of which one layer passes on what it gets, so that nothing is lost without it."""
    model = tiny_model(seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"layers.{IDENTITY}." in name and ("o_proj" in name or "down_proj" in name):
                parameter.zero_()
            elif "lm_head" in name:
                parameter.mul_(4)  # confident, so that its own text is best predicted by itself
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return planted(tmp_path_factory.mktemp("planted") / "source")


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ids") / "ids.npy"
    np.save(path, np.random.default_rng(1).integers(1, 101, size=(8, 9)))
    return str(path)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("scores") / "scores.safetensors"
    random_scores(WHOLE, 0).save(path)
    return str(path)


def sizes(candidate: Candidate) -> tuple[int, int, int, int]:
    at = candidate.architecture
    return (at.num_hidden_layers, at.hidden_size, at.intermediate_size, at.num_attention_heads)


def losses(report: SearchReport) -> dict[tuple[int, int, int, int], float]:
    return {sizes(candidate): candidate.loss for candidate in report.candidates}


def test_the_planted_best_candidate_is_found(source: str) -> None:
    shallow = WHOLE.resized(num_hidden_layers=3)
    text: dict[str, Any] = {"corpus": "self", "samples": 16, "seq_len": 32, "seed": 5}
    report = minitron.search(source, ratio=shallow.parameters / WHOLE.parameters, **text)
    best = report.best
    assert best.architecture == shallow
    assert best.plan.layers == tuple(layer for layer in range(4) if layer != IDENTITY)
    uncut = losses(minitron.search(source, ratio=1.0, **text))[(4, 42, 66, 6)]
    assert best.loss == pytest.approx(uncut, rel=1e-6)
    assert 1.5 * best.loss < min(one.loss for one in report.candidates if len(one.plan.layers) > 3)
    assert report.counts["compared"] == len(report.candidates) > 10
    assert [c.loss for c in report.candidates] == sorted(c.loss for c in report.candidates)
    for candidate in report.candidates:
        assert abs(candidate.cost.parameters / shallow.parameters - 1) <= 0.05
        assert candidate.cost.parameters == candidate.architecture.parameters
        use = Use(1, 64, 4)
        assert candidate.cost.memory == memory_needed(candidate.architecture, use)


@pytest.mark.parametrize(
    "text",
    [{}, {"corpus": "self", "samples": 24, "seq_len": 32}],
    ids=["as cut", "reconstructed"],
)
def test_a_loss_is_that_of_the_model_as_prune_writes_it(
    text: dict[str, Any],
    source: str,
    ids: str,
    scores: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fit, "TOKENS_AN_INPUT", 12)  # of 66: candidates are fitted on all
    asked: dict[str, Any] = {"ratio": 0.6, "importance": scores, "held_out": ids}
    report = minitron.search(source, **asked, max_candidates=3, **text)
    state = "reconstructed" if text else "as cut"
    assert report.measured.startswith(f"Loss {'after reconstruction' if text else 'as cut'}, in")
    assert ("Reconstructed on 768 tokens of self." in report.measured) == bool(text)
    assert f"loss {report.best.loss:.4f} {state}, the best of 3" in report.reason()
    assert f"loss {state}" in report.to_markdown()
    assert report.to_json()["candidates_are"] == state
    for number, candidate in enumerate(report.candidates):
        layers, hidden, ffn, heads = sizes(candidate)
        minitron.prune(
            source,
            str(tmp_path / f"{number}"),
            num_hidden_layers=layers,
            hidden_size=hidden,
            intermediate_size=ffn,
            num_attention_heads=heads,
            importance=scores,
            **text,
        )
        record = json.loads((tmp_path / f"{number}" / "minitron.json").read_text())
        assert record.get("reconstruction", {}).get("used", False) == bool(text)
        written = minitron.evaluate(str(tmp_path / f"{number}"), corpus=ids)
        assert candidate.loss == pytest.approx(written.loss, rel=1e-6)


def test_weights_read_again_give_the_same_losses_as_weights_held(
    source: str, ids: str, scores: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"ratio": 0.6, "importance": scores, "held_out": ids}
    held = losses(minitron.search(source, **asked))
    whole = loaded_bytes(open_source(source), None, "cpu")
    monkeypatch.setattr(comparison, "free_memory", lambda _: whole)  # a candidate fits beside none
    assert losses(minitron.search(source, **asked)) == held


def test_candidates_larger_than_memory_have_the_losses_of_loaded_ones(
    source: str, ids: str, scores: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"ratio": 0.6, "importance": scores, "held_out": ids}
    loaded = losses(minitron.search(source, **asked))
    monkeypatch.setattr(comparison, "free_memory", lambda _: 0)
    assert losses(minitron.search(source, **asked)) == pytest.approx(loaded, rel=1e-6)


def test_the_teacher_is_searched_into_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    arguments = "--ratio 0.5 --corpus random --samples 6 --seq-len 24 --max-candidates 4"
    main(["search", "tiny", str(out), *arguments.split()])
    printed = capsys.readouterr().out
    assert f"Written: {out}" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found"]
    names = ["importance.safetensors", "pareto.png", "search.json", "search.md"]
    assert sorted(path.name for path in out.iterdir()) == names
    record = json.loads((out / "search.json").read_text())
    assert record["counts"]["compared"] == len(record["candidates"]) == 4
    assert record["counts"]["within_budget"] > 4
    assert record["budget"] == {
        "parameters": round(6_724_096 / 2),
        "memory_bytes": None,
        "latency_seconds": None,
        "tolerance": 0.05,
    }
    assert "of random, on which importance is not measured" in record["measured"]
    assert record["importance"]["corpus"] == "random"
    assert record["importance"]["samples"] == 5
    importance = Importance.load(out / "importance.safetensors")
    whole = Architecture.from_config(open_source("tiny").config)
    for candidate in record["candidates"]:
        keys = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
        target = whole.resized(**{key: candidate[key] for key in keys})
        assert candidate["kept"] == choose_plan(importance, whole, target).to_json()
        assert candidate["parameters"] == target.parameters
    table = (out / "search.md").read_text()
    assert table.count("\n| ") == 4 + 2  # the head and its rule
    assert f"{record['candidates'][0]['loss']:.4f}" in table
    assert "Chose hidden_size" in table


def test_json_is_one_object_on_stdout(
    source: str, ids: str, scores: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--ratio", "0.6", "--importance", scores, "--held-out", ids]
    main(["search", source, *options, "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["candidates"][0]["rank"] == 1


@pytest.mark.parametrize(
    "options",
    [
        "--corpus {ids}",
        "--out found --corpus {ids}",
        "--scores magnitude --corpus {ids}",
        "--importance {scores} --held-out {ids} --contiguous-layers",
        "--out found --importance {scores} --held-out {ids} --head-residual",
    ],
)
def test_it_ends_with_the_command_that_prunes_to_the_best_sizes(
    options: str,
    source: str,
    ids: str,
    scores: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--ratio", "0.6", "--multiple-of", "6", "--max-candidates", "2", "--eval-tokens", "8"]
    main(["search", source, *options.format(ids=ids, scores=scores).split(), *few])
    printed = capsys.readouterr()
    assert printed.out.count("chose ") == 1
    assert "chose " not in printed.err
    command = shlex.split(printed.out.partition("\nNext:\n")[2])
    main(command[1:])
    record = json.loads((Path(command[3]) / "minitron.json").read_text())
    assert ("reconstruction" in record) == ("--corpus" in options and "--scores" not in options)
    made = minitron.inspect(command[3])
    best = printed.out.splitlines()[1].split()
    shown = [made.num_hidden_layers, made.hidden_size, made.intermediate_size]
    assert best[1:4] == [str(size) for size in shown]


def test_an_interrupted_search_continues_with_what_it_has(
    source: str, ids: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    asked: dict[str, Any] = {"ratio": 0.6, "corpus": ids, "seq_len": 9, "max_candidates": 6}
    wanted = losses(minitron.search(source, **asked))
    measure, calls = comparison.source_loss, 0

    def interrupted(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(comparison, "source_loss", interrupted)
    with pytest.raises(KeyboardInterrupt) as stopped:
        minitron.search(source, out, **asked)
    assert stopped.value.__notes__ == ["the same command goes on from 3 measured candidates"]
    assert not Path(out).exists()

    def never(*_: Any) -> None:
        raise AssertionError("importance is measured already")

    monkeypatch.setattr(comparison, "score", never)
    assert losses(minitron.search(source, out, **asked)) == wanted
    assert calls == 4 + 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    ("replaced", "output"),
    [("held-out", "held out text"), ("model", "model"), ("corpus", "text")],
)
def test_an_interrupted_search_does_not_go_on_with_other_files(
    replaced: str, output: str, ids: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_folder(tmp_path / "model")
    held_out, corpus = tmp_path / "held-out.npy", tmp_path / "corpus.npy"
    shutil.copy(ids, held_out)
    shutil.copy(ids, corpus)
    asked: dict[str, Any] = {"ratio": 0.6, "corpus": str(corpus), "held_out": str(held_out)}
    asked |= {"seq_len": 9, "max_candidates": 3}
    calls, measure = iter(range(9)), comparison.source_loss

    def interrupted(*arguments: Any) -> float:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(comparison, "source_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        minitron.search(str(model), str(tmp_path / "out"), **asked)
    if replaced == "model":
        tiny_folder(model, seed=77)
    else:
        path = tmp_path / f"{replaced}.npy"
        np.save(path, np.load(path)[::-1])
    with pytest.raises(OutputError, match=rf"out\.partial was begun with other {output} under the"):
        minitron.search(str(model), str(tmp_path / "out"), **asked)


def test_finalists_are_retrained_and_ranked_again(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = minitron.search(
        source,
        str(out),
        ratio=0.6,
        corpus="self",
        samples=12,
        seq_len=24,
        max_candidates=5,
        top=2,
        retrain_steps=8,
        batch_size=4,
        learning_rate=3e-3,
        reconstruct="none",
    )
    finalists, others = report.candidates[:2], report.candidates[2:]
    assert all(one.retrained_loss is None for one in others)
    assert {one.loss for one in finalists} == set(sorted(one.loss for one in report.candidates)[:2])
    again = [one.retrained_loss for one in finalists if one.retrained_loss is not None]
    assert again == sorted(again)
    assert len(again) == 2
    assert all((one.retrained_loss or 9e9) < one.loss for one in finalists)
    assert not (out / "retraining").exists()
    assert "retrained" in (out / "search.md").read_text()


def test_finalists_are_distilled_from_the_start_that_is_used(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distilled: list[dict[str, Any]] = []

    def distill(**recipe: Any) -> Any:
        starts = minitron.evaluate(recipe["student"], corpus=recipe["corpus"])
        distilled.append({**recipe, "loss": starts.loss})
        return minitron.distill(**recipe)

    monkeypatch.setattr("minitron.verbs.search.distill", distill)
    text: dict[str, Any] = {"corpus": "self", "samples": 24, "seq_len": 32}
    retraining = {"retrain_steps": 2, "retrain_on": "teacher", "batch_size": 2, "top": 1}
    out = str(tmp_path / "out")
    options: dict[str, Any] = {"ratio": 0.6, "max_candidates": 2, **text, **retraining}
    report = minitron.search(source, out, reconstruct="auto", **options)
    [recipe] = distilled
    assert (recipe["teacher"], recipe["alpha"], recipe["steps"]) == (source, 0.0, 2)
    assert report.best.retrained_loss is not None
    cut = minitron.search(
        source,
        **{**options, "retrain_steps": 0, "retrain_on": "text"} | {"batch_size": 8, "top": 3},
        reconstruct="none",
    )
    as_cut = {one.name: one.loss for one in cut.candidates}
    assert report.best.loss < as_cut[report.best.name]
    assert not (tmp_path / "out" / "fitted").exists()


def test_candidates_share_the_directions_and_are_fitted_on_few_tokens(
    source: str, ids: str, scores: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: list[int] = []
    turned = []

    def fitted(*arguments: Any, **options: Any) -> Any:
        tokens.append(sum(map(len, [*arguments[2], *arguments[3]])))
        return fitted_model(*arguments, **options)

    def covariance(*arguments: Any) -> Any:
        turned.append(1)
        return covariance_of(*arguments)

    monkeypatch.setattr(fit, "fitted_model", fitted)
    monkeypatch.setattr(reconstruct, "covariance_of", covariance)
    monkeypatch.setattr(fit, "TOKENS_AN_INPUT", 5)  # of 66
    text: dict[str, Any] = {"importance": scores, "corpus": "self", "samples": 24, "seq_len": 32}
    asked: dict[str, Any] = {"ratio": 0.6, "held_out": ids, "max_candidates": 3, **text}
    report = minitron.search(source, str(tmp_path / "out"), **asked)
    assert tokens == [352] * 3
    assert len(turned) == 1
    assert "Reconstructed on 352 tokens of self." in report.measured
    assert not (tmp_path / "out" / "fitted").exists()


def test_the_memory_of_a_fit_is_stated_once_with_the_weights_that_are_held(
    source: str,
    ids: str,
    scores: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    asked: dict[str, Any] = {"ratio": 0.6, "importance": scores, "corpus": ids, "max_candidates": 2}
    monkeypatch.setattr(fit, "memory_in_use", lambda _: 0)
    for free in (1 << 40, 0):
        caplog.clear()
        monkeypatch.setattr(fit, "free_memory", lambda _, free=free: free)
        minitron.search(source, **asked)
        stated = [line for line in caplog.messages if line.startswith("each candidate: reconst")]
        assert len(stated) == 1
        assert ("is read again for each candidate" in caplog.text) == (free == 0)
    with pytest.raises(TargetError, match="the memory budget is 1.00 MiB: to reconstruct"):
        minitron.search(source, **asked, memory_budget="1MiB")


def test_what_prune_does_not_reconstruct_is_compared_as_cut(
    source: str, ids: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "rows.npy", np.load(ids)[:1])
    asked: dict[str, Any] = {"ratio": 0.6, "corpus": str(tmp_path / "rows.npy"), "held_out": ids}
    report = minitron.search(source, **asked, max_candidates=2)
    assert report.measured.startswith("Loss as cut")
    assert "candidates are compared as cut: one sequence of text" in caplog.text
    with pytest.raises(TargetError, match="needs at least 2 sequences"):
        minitron.search(source, **asked, reconstruct="auto")


class TestLatency:
    """A machine whose layers take as long as they are wide."""

    TABLE = LatencyTable(
        corners=Corners(hidden=(0, 100), heads=(6,), ffn=(66,)),
        attention=((0.0,), (0.0,)),
        mlp=((0.0,), (1.0,)),
        head=(0.0, 0.0),
        rest=0.0,
    )
    ASKED: dict[str, Any] = {"latency": "1000ms", "device": "cpu", "max_candidates": 12, "top": 2}

    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shortlist, "measure_table", lambda *_: self.TABLE)
        monkeypatch.setattr(comparison, "measured_step", lambda config, _: 1.02)

    def test_candidates_are_predicted_to_keep_to_it(
        self, source: str, ids: str, scores: str
    ) -> None:
        report = minitron.search(source, importance=scores, held_out=ids, **self.ASKED)
        for candidate in report.candidates:
            layers, hidden, *_ = sizes(candidate)
            assert candidate.cost.latency == pytest.approx(layers * hidden / 100)
            assert 0.95 <= layers * hidden / 100 <= 1.05
        assert [c.measured_latency for c in report.candidates][:3] == [1.02, 1.02, None]
        assert report.conditions["device"] == "cpu"
        assert "ms predicted" in report.to_markdown()

    def test_a_finalist_that_is_slower_than_predicted_falls_behind(
        self, source: str, ids: str, scores: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = {"importance": scores, "held_out": ids, **self.ASKED}
        first = minitron.search(source, **asked).best
        layers, hidden, *_ = sizes(first)

        def measured(config: dict[str, Any], _: Any) -> float:
            is_first = (config["num_hidden_layers"], config["hidden_size"]) == (layers, hidden)
            return 1.06 if is_first else 0.3  # quicker than asked is no fault

        monkeypatch.setattr(comparison, "measured_step", measured)
        report = minitron.search(source, **asked)
        assert sizes(report.best) != sizes(first)
        assert not report.best.is_over_latency
        over = [one for one in report.candidates if one.is_over_latency]
        assert sizes(over[0]) == sizes(first)
        assert report.candidates[-len(over) :] == tuple(over)
        assert "1060.00 (over)" in report.to_markdown()

    def test_what_does_not_fit_is_not_timed_whole(
        self, source: str, ids: str, scores: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(comparison, "free_memory", lambda _: 1000)
        report = minitron.search(source, importance=scores, held_out=ids, **self.ASKED)
        assert all(one.measured_latency is None for one in report.candidates)


def test_real_latency_is_measured_on_this_machine(source: str, ids: str, scores: str) -> None:
    report = minitron.search(
        source, ratio=0.6, device="cpu", importance=scores, held_out=ids, max_candidates=2, top=1
    )
    assert (report.best.cost.latency or 0) > 0
    assert (report.best.measured_latency or 0) > 0


def test_sizes_that_llama_refuses_are_not_in_the_space(tmp_path: Path, ids: str) -> None:
    folder = tiny_folder(tmp_path / "llama", "llama", hidden_size=48)
    whole = Architecture.from_config(open_source(str(folder)).config)
    random_scores(whole, 0).save(tmp_path / "scores")
    report = minitron.search(
        str(folder), ratio=0.7, importance=str(tmp_path / "scores"), held_out=ids
    )
    assert report.counts["refused_by_family"] == 0
    assert report.counts["within_budget"] == len(report.candidates) > 10
    for candidate in report.candidates:
        _, hidden, _, heads = sizes(candidate)
        assert hidden % heads == 0


def test_heads_that_share_no_kv_head_are_searched_with_their_own(tmp_path: Path, ids: str) -> None:
    folder = tiny_folder(tmp_path / "even", "mistral", num_key_value_heads=6)
    whole = Architecture.from_config(open_source(str(folder)).config)
    random_scores(whole, 0).save(tmp_path / "scores")
    report = minitron.search(
        str(folder), ratio=0.7, importance=str(tmp_path / "scores"), held_out=ids, device="cpu"
    )
    found = {
        (at.num_attention_heads, at.num_key_value_heads)
        for at in (candidate.architecture for candidate in report.candidates)
    }
    assert found <= {(3, 3), (4, 4), (5, 5), (6, 6)}
    assert len(found) > 2


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"ratio": None}, "no budget is given: name --params, --ratio, --memory or --latency"),
        (
            {"ratio": None, "params": "9B"},
            "has .* parameters, fewer than the budget, 9,000,000,000 parameters ± 5 %: give a sma",
        ),
        ({"ratio": None, "params": "9"}, r"none of the [\d,]+ candidates is within 9 parameters"),
        (
            {"ratio": None, "params": "9"},
            r"nearest: hidden_size \d+, intermediate_size \d+, num_at",
        ),
        ({"memory": "1kB"}, "candidates is within .* parameters, 1000 bytes ± 5 %; nearest: "),
        (
            {"ratio": None, "memory": "1GiB"},
            "the source is within the budget already, 1.00 GiB ± 5 %: it has .*: give a smaller",
        ),
        ({"latency": "1ms", "device": "cuda:97"}, "--device is cuda:97: this machine has cpu"),
        (
            {"corpus": "self", "reconstruct": "none"},
            "--importance and --corpus are both given: choose one",
        ),
        ({"importance": None}, "ranking by activations needs --corpus"),
        ({"held_out": None}, "candidates are compared on text: name --held-out"),
        ({"held_out": "missing.npy"}, "missing.npy does not exist"),
        ({"importance": "missing"}, "missing does not exist: make it with `minitron importance`"),
        ({"space": "paper-8b"}, "nothing of this space is smaller than 4 layers"),
        ({"space": "paper-8b", "multiple_of": 8}, "--multiple-of is given, but --space paper-8b"),
        ({"batch": 0}, "--batch is 0: it must be at least 1"),
        ({"context": 0}, "--context is 0"),
        ({"eval_tokens": 0}, "--eval-tokens is 0"),
        ({"max_candidates": 0}, "--max-candidates is 0"),
        ({"top": 0}, "--top is 0"),
        ({"retrain_steps": -1}, "--retrain-steps is -1"),
        ({"learning_rate": 0.0}, "--learning-rate is 0"),
        (
            {"head_residual": True, "scores": "modelopt"},
            "combined with --scores modelopt",
        ),
        ({"retrain_steps": 1}, "retraining needs text: name --retrain-corpus"),
    ],
)
def test_a_mistake_is_reported_and_nothing_is_written(
    source: str, ids: str, scores: str, tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    asked = {"ratio": 0.6, "importance": scores, "held_out": ids, **changed}
    with pytest.raises(MinitronError, match=says):
        minitron.search(source, str(tmp_path / "out"), **asked)
    assert list(tmp_path.iterdir()) == []


def test_text_of_another_vocabulary_is_refused(source: str, scores: str, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.full((2, 9), 101))
    with pytest.raises(MinitronError, match="holds token id 101, outside the model's vocabulary"):
        minitron.search(source, ratio=0.6, importance=scores, held_out=str(tmp_path / "ids.npy"))


def test_importance_of_another_model_is_refused(source: str, ids: str, tmp_path: Path) -> None:
    random_scores(WHOLE.resized(intermediate_size=65), 0).save(tmp_path / "other")
    with pytest.raises(MinitronError, match="it was measured on another model"):
        minitron.search(source, ratio=0.6, importance=str(tmp_path / "other"), held_out=ids)


def test_one_sequence_is_too_few_to_hold_out_any(source: str, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.ones((1, 9), np.int64))
    with pytest.raises(MinitronError, match="1 sequences of 9 tokens, too few to hold out any"):
        minitron.search(source, ratio=0.6, corpus=str(tmp_path / "ids.npy"))


def test_no_more_than_the_asked_tokens_are_predicted(source: str, scores: str, ids: str) -> None:
    asked: dict[str, Any] = {"ratio": 0.6, "importance": scores, "held_out": ids}
    few = minitron.search(source, eval_tokens=19, max_candidates=1, **asked)
    assert "on 19 tokens of ids.npy" in few.measured
    assert few.best.loss != minitron.search(source, max_candidates=1, **asked).best.loss


def test_without_matplotlib_there_is_no_picture(
    source: str, ids: str, scores: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "can_draw", lambda: False)
    minitron.search(source, str(tmp_path / "out"), ratio=0.6, importance=scores, held_out=ids)
    assert (tmp_path / "out" / "search.md").exists()
    assert not (tmp_path / "out" / "pareto.png").exists()


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [(3.0, 5.0), (1.0, 9.0), (2.0, 9.0), (2.0, 7.0), (4.0, 6.0), (5.0, 4.0)]
    assert report.pareto_front(points) == [(1.0, 9.0), (2.0, 7.0), (3.0, 5.0), (5.0, 4.0)]


def test_all_that_is_within_the_budget_is_compared(source: str, ids: str, scores: str) -> None:
    report = minitron.search(source, ratio=0.6, importance=scores, held_out=ids)
    wanted = {
        (layers, hidden, ffn, heads)
        for layers in default_space(WHOLE).layers
        for heads in default_space(WHOLE).heads
        for hidden, ffn in default_space(WHOLE).widths
        if abs(
            WHOLE.resized(
                num_hidden_layers=layers,
                hidden_size=hidden,
                intermediate_size=ffn,
                num_attention_heads=heads,
            ).parameters
            / round(0.6 * WHOLE.parameters)
            - 1
        )
        <= 0.05
    }
    assert {sizes(candidate) for candidate in report.candidates} == wanted
