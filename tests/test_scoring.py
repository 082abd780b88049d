"""Importance of a source: layer by layer or loaded, in chunks, by processes, taken up again."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from minitron import measure_importance
from minitron.errors import CorpusError, ImportanceError, OutputError, TargetError
from minitron.model.importance import Importance
from minitron.options import flag_of
from minitron.scores import measuring, sweep
from minitron.scores.sweep import SweepPlan
from minitron.sources.layer_stream import LayerStream
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source
from minitron.text.corpus import Corpus
from tests.processes import exit_code, run_command, together
from tests.tiny import FAMILIES, SIZES, activation_scores, edit_config, tiny_folder, weights_of

AXES = ("hidden", "ffn", "heads", "kv_heads", "layers")


def ids_file(path: Path, samples: int = 7, length: int = 9, low: int = 4) -> str:
    ids = np.random.default_rng(0).integers(low, SIZES["vocab_size"], size=(samples, length))
    np.save(path, ids)
    return str(path)


def planned(monkeypatch: pytest.MonkeyPatch, plan: SweepPlan) -> None:
    monkeypatch.setattr("minitron.scores.measuring.plan_sweep", lambda *_, **__: plan)


def assert_equal(one: Importance, other: Importance, rtol: float = 1e-6) -> None:
    assert one.axes == other.axes
    for axis in one.axes:
        torch.testing.assert_close(one.axis(axis), other.axis(axis), rtol=rtol, atol=1e-7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "model", "qwen2-sliding")


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_layer_by_layer_gives_what_the_loaded_model_gives(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(tmp_path / "model", family)
    corpus = ids_file(tmp_path / "ids.npy")
    planned(monkeypatch, SweepPlan(keep=False, batch_tokens=20, chunk_tokens=40, peak=0))
    streamed = measure_importance(str(folder), str(tmp_path / "out"), corpus=corpus)
    model = load_model(open_source(str(folder)))
    ids = np.load(corpus).astype(np.int32)
    assert_equal(streamed, activation_scores(model, Corpus(ids, corpus)))
    assert streamed.axes == ("hidden", "ffn", "heads", "layers", "kv_heads")


@pytest.mark.parametrize(
    ("scores", "layer_scores"),
    [
        *(("paper", measure) for measure in ("influence", "loss", "logits")),
        *((scores, "influence") for scores in ("contribution", "obs")),
    ],
)
def test_chunks_and_batches_do_not_change_scores(
    scores: Any, layer_scores: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = ids_file(tmp_path / "ids.npy")
    found = []
    for keep, batch, chunk in ((True, 100, 100), (False, 9, 9), (False, 9, 40), (True, 20, 60)):
        planned(monkeypatch, SweepPlan(keep, batch, chunk, peak=0))
        out = str(tmp_path / f"{keep}-{batch}-{chunk}")
        options: Any = {"scores": scores, "layer_scores": layer_scores, "block_size": 2}
        found.append(measure_importance(str(folder), out, corpus=corpus, **options))
    for other in found[1:]:
        assert_equal(other, found[0], rtol=1e-5)


def test_the_layers_are_read_once_a_chunk_and_kept_where_they_fit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = ids_file(tmp_path / "ids.npy", samples=6)
    reads: list[str] = []
    read = LayerStream._read

    def watched(self: LayerStream, name: str, *rows: Any) -> torch.Tensor:
        reads.append(name)
        return read(self, name, *rows)

    monkeypatch.setattr(LayerStream, "_read", watched)
    for keep, times in ((False, 3), (True, 1)):
        reads.clear()
        planned(monkeypatch, SweepPlan(keep, batch_tokens=9, chunk_tokens=18, peak=0))
        measure_importance(str(folder), str(tmp_path / f"{keep}"), corpus=corpus)
        of_layer = [name for name in reads if name == "model.layers.2.mlp.up_proj.weight"]
        assert len(of_layer) == times
        assert "lm_head.weight" not in reads


def test_the_file_says_what_made_it(folder: Path, tmp_path: Path) -> None:
    corpus = ids_file(tmp_path / "ids.npy")
    options: Any = {"aggregation": "mean,var", "neurons": "before", "block_size": 3}
    measure_importance(str(folder), str(tmp_path / "out"), corpus=corpus, **options)
    made_by = Importance.load(tmp_path / "out").made_by
    assert made_by["scores"] == "paper"
    assert made_by["aggregation"] == {"batch": "mean", "sequence": "var"}
    assert made_by["neurons"] == "before"
    assert made_by["block_size"] == 3
    assert made_by["tokens"] == 63
    assert made_by["samples"] == 7
    assert made_by["model"]["name"] == str(folder)
    assert len(made_by["model"]["digest"]) == 64
    assert len(made_by["corpus_digest"]) == 64


@pytest.mark.parametrize("scores", ["paper", "random", "magnitude"])
def test_importance_of_another_model_is_refused_and_both_are_named(
    scores: Any, folder: Path, tmp_path: Path
) -> None:
    other = tiny_folder(tmp_path / "other", "qwen2-sliding", seed=1)
    corpus = ids_file(tmp_path / "ids.npy") if scores == "paper" else None
    importance = measure_importance(
        str(folder), str(tmp_path / "out"), corpus=corpus, scores=scores
    )
    importance.check_made_for(open_source(str(folder)))
    with pytest.raises(ImportanceError) as refused:
        importance.check_made_for(open_source(str(other)))
    assert str(refused.value) == (
        f"the importance was measured on {folder}, whose weights are not those of {other}: "
        "measure it again"
    )
    copied = shutil.copytree(folder, tmp_path / "copied")
    importance.check_made_for(open_source(str(copied)))
    Importance({}, hidden=importance.hidden).check_made_for(open_source(str(other)))


def test_padding_behind_the_text_does_not_count(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "mistral")
    ids = np.load(ids_file(tmp_path / "ids.npy", samples=4, length=8))
    lengths = (8, 5, 5, 0)
    for row, length in zip(ids, lengths, strict=True):
        row[length:] = 0  # the config's pad_token_id
    np.save(tmp_path / "padded.npy", ids)
    corpus = str(tmp_path / "padded.npy")
    padded = measure_importance(str(folder), str(tmp_path / "out"), corpus=corpus)
    model = load_model(open_source(str(folder)))
    alone = [
        activation_scores(model, Corpus(row[None, :length].astype(np.int32), "row"))
        for row, length in zip(ids[:3], lengths, strict=False)
    ]
    for axis in ("ffn", "heads", "kv_heads"):
        squares = sum(scores.axis(axis).square() for scores in alone)
        torch.testing.assert_close(padded.axis(axis), squares.sqrt(), rtol=1e-5, atol=1e-7)
    influence = sum(s.axis("layers") * n for s, n in zip(alone, lengths, strict=False)) / 18
    torch.testing.assert_close(padded.axis("layers"), influence, rtol=1e-5, atol=1e-7)
    assert padded.made_by["tokens"] == 18


def test_an_end_of_text_that_pads_too_is_text(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "mistral")
    edit_config(folder, eos_token_id=0)
    ids = np.load(ids_file(tmp_path / "ids.npy", samples=2, length=8))
    ids[:, 5:] = 0
    np.save(tmp_path / "ids.npy", ids)
    corpus = str(tmp_path / "ids.npy")
    scores = measure_importance(str(folder), str(tmp_path / "out"), corpus=corpus)
    assert scores.made_by["tokens"] == 16


def test_a_corpus_of_padding_is_refused(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.zeros((2, 5), np.int64))
    with pytest.raises(CorpusError, match=r"holds nothing but padding \(id 0\)"):
        measure_importance(str(folder), str(tmp_path / "out"), corpus=str(tmp_path / "ids.npy"))


class TestSettings:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"aggregation": "l2"}, "--aggregation is 'l2': it must be two of l2, mean, var"),
            ({"block_size": 1}, "--block-size is 1: it must be from 2 to 3"),
            ({"block_size": 4}, "--block-size is 4: it must be from 2 to 3"),
            ({"memory_budget": "much"}, "--memory-budget is 'much': write a size such as 6GiB"),
            ({"scores": "modelopt", "neurons": "before"}, "--scores modelopt has its own"),
            ({"scores": "modelopt", "aggregation": "mean,mean"}, "--scores modelopt has its own"),
            ({"scores": "contribution", "neurons": "before"}, "its own --aggregation and --neu"),
            ({"scores": "obs", "neurons": "before"}, "its own --aggregation and --neurons"),
            ({"layer_scores": "loss", "seq_len": 1}, "loss needs sequences of at least 2 tokens"),
        ],
        ids=str,
    )
    def test_that_cannot_be_are_named_and_nothing_is_written(
        self, options: Any, says: str, folder: Path, tmp_path: Path
    ) -> None:
        corpus = ids_file(tmp_path / "ids.npy")
        with pytest.raises(TargetError, match=says):
            measure_importance(str(folder), str(tmp_path / "out"), corpus=corpus, **options)
        assert {path.name for path in tmp_path.iterdir()} == {"model", "ids.npy"}

    def test_ids_beyond_the_vocabulary_are_named(self, folder: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "ids.npy", np.array([[5, 101]]))
        with pytest.raises(CorpusError, match="token id 101, outside the model's vocabulary of 1"):
            measure_importance(str(folder), str(tmp_path / "out"), corpus=str(tmp_path / "ids.npy"))

    def test_a_budget_too_small_for_a_layer_says_the_least_that_works(
        self, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        corpus, out = ids_file(tmp_path / "ids.npy"), str(tmp_path / "out")
        with pytest.raises(
            TargetError, match="two layers and a sequence of .* at least"
        ) as refused:
            measure_importance(str(folder), out, corpus=corpus, memory_budget="1MiB")
        least = str(refused.value).rpartition("at least ")[2]
        assert least.endswith(("MiB", "GiB"))
        assert not (tmp_path / "out").exists()

    def test_the_expected_peak_is_reported_before(
        self, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        corpus, out = ids_file(tmp_path / "ids.npy"), str(tmp_path / "out")
        with caplog.at_level(logging.INFO, "minitron"):
            measure_importance(str(folder), out, corpus=corpus, memory_budget="64GiB")
        assert "measuring 63 tokens with layers kept in memory: at most" in caplog.text


def measure_until_killed(place: Path) -> None:
    """Measure in chunks of two sequences, and die after the second chunk."""
    os.chdir(place)
    write, chunks = sweep._write, iter(range(100))

    def dying(*arguments: Any) -> None:
        write(*arguments)
        if next(chunks) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    sweep._write = dying
    measuring.plan_sweep = lambda *_, **__: SweepPlan(False, 9, 18, 0)
    measure_importance("model", "out", corpus=str(place / "ids.npy"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place where a run was killed after two of four chunks."""
    place = tmp_path_factory.mktemp("killed")
    tiny_folder(place / "model", "qwen2-sliding")
    ids_file(place / "ids.npy")
    assert exit_code(measure_until_killed, place) == -signal.SIGKILL
    assert not (place / "out").exists()
    return place


class TestAnInterruptedRun:
    @pytest.fixture(autouse=True)
    def at(self, killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A copy of that place to work in."""
        shutil.copytree(killed, tmp_path / "copy")
        monkeypatch.chdir(tmp_path / "copy")

    def test_it_continues_from_its_last_chunk(
        self, killed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "minitron")
        corpus = str(killed / "ids.npy")
        planned(monkeypatch, SweepPlan(keep=False, batch_tokens=9, chunk_tokens=18, peak=0))
        whole = measure_importance("model", "whole", corpus=corpus)
        seen: list[int] = []
        embed = LayerStream.embed_all

        def watched(self: LayerStream, batches: Any) -> list[torch.Tensor]:
            seen.extend(map(len, batches))
            return embed(self, batches)

        monkeypatch.setattr(LayerStream, "embed_all", watched)
        resumed = measure_importance("model", "out", corpus=corpus)
        assert sum(seen) == 3  # of 7 sequences, 4 were done
        assert "going on from sequence 4" in caplog.messages
        assert resumed.digest == whole.digest
        assert Path("out").read_bytes() == Path("whole").read_bytes()
        assert not Path("out.partial").exists()

    def test_may_go_on_with_another_budget(self, killed: Path) -> None:
        corpus = str(killed / "ids.npy")
        resumed = measure_importance("model", "out", corpus=corpus, memory_budget="64GiB")
        assert_equal(resumed, measure_importance("model", "whole", corpus=corpus))

    def test_with_other_settings_is_refused_and_shown_them(self, killed: Path) -> None:
        corpus = str(killed / "ids.npy")
        with pytest.raises(OutputError, match="was begun with aggregation 'l2,mean', now 'l2,l2'"):
            measure_importance("model", "out", corpus=corpus, aggregation="l2,l2")
        kept = np.load(corpus)
        np.save(corpus, kept[:, :8])
        with pytest.raises(OutputError, match="was begun with corpus_digest"):
            measure_importance("model", "out", corpus=corpus)
        np.save(corpus, kept)


def test_an_interrupted_run_continues_from_the_moments_of_its_last_chunk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = ids_file(tmp_path / "ids.npy")
    options: Any = {"scores": "obs"}
    planned(monkeypatch, SweepPlan(keep=False, batch_tokens=9, chunk_tokens=18, peak=0))
    whole = measure_importance(str(folder), str(tmp_path / "whole"), corpus=corpus, **options)
    write, chunks = sweep._write, iter(range(100))

    def interrupted(*arguments: Any) -> None:
        if next(chunks) == 2:  # whose moments are stored, and its other sums are not
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(sweep, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_importance(str(folder), str(tmp_path / "out"), corpus=corpus, **options)
    monkeypatch.setattr(sweep, "_write", write)
    resumed = measure_importance(str(folder), str(tmp_path / "out"), corpus=corpus, **options)
    assert resumed.digest == whole.digest
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"layer_scores": "loss"}, {"scores": "contribution"}, {"scores": "obs"}],
    ids=str,
)
def test_two_processes_give_what_one_gives(options: Any, folder: Path, tmp_path: Path) -> None:
    corpus = ids_file(tmp_path / "ids.npy")
    alone = measure_importance(str(folder), str(tmp_path / "alone"), corpus=corpus, **options)
    flags = [f"--corpus={corpus}", *(f"{flag_of(key)}={options[key]}" for key in options)]
    command = ["importance", str(folder), str(tmp_path / "shared"), *flags]
    together(run_command, str(tmp_path / "printed"), command)
    assert (tmp_path / "printed-0").read_text().startswith(str(tmp_path / "shared"))
    assert (tmp_path / "printed-1").read_text() == ""
    shared = Importance.load(tmp_path / "shared")
    assert_equal(shared, alone, rtol=1e-5)
    assert shared.made_by == alone.made_by
    assert not (tmp_path / "shared.partial").exists()


def test_more_processes_than_sequences_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minitron.recipes.importance import ImportanceRecipe
    from minitron.scores.calibration import Calibration
    from minitron.scores.measuring import _score_by_activations, _Task, measurement_of
    from minitron.sources.processes import Processes

    source = open_source(str(folder))
    recipe = ImportanceRecipe(source=str(folder), out="out", corpus="ids.npy")
    corpus = Corpus(np.zeros((2, 3), np.int32), "ids")
    task = _Task(source, recipe, measurement_of(recipe, source), Processes(rank=0, count=3))
    with pytest.raises(TargetError, match="2 sequences cannot be shared by 3 processes"):
        _score_by_activations(task, Calibration(corpus, list(corpus.sequences)))


@pytest.mark.parametrize(("measure", "passes"), [("loss", "2.2"), ("influence", None)])
def test_what_scoring_layers_by_leaving_them_out_costs_is_reported(
    measure: Any, passes: str | None, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "minitron"):
        measure_importance(
            str(folder),
            str(tmp_path / "out"),
            corpus=ids_file(tmp_path / "ids.npy"),
            layer_scores=measure,
            block_size=2,
        )
    output = f"layers by {measure} take the work of {passes} passes more" in caplog.text
    assert output == (passes is not None)


def test_activations_that_overflow_are_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    weights = {name: tensor.clone() for name, tensor in weights_of(folder).items()}
    for name, tensor in weights.items():
        if "up_proj" in name:
            tensor *= 1e30
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ImportanceError, match="activations are not finite in float32"):
        measure_importance(
            str(folder), str(tmp_path / "out"), corpus=ids_file(tmp_path / "ids.npy")
        )
    assert not any(tmp_path.glob("out*"))


def test_a_model_that_samples_its_own_text_must_fit(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="all layers, as --corpus self asks, and a sequence"):
        measure_importance(
            str(folder), str(tmp_path / "out"), corpus="self", samples=2, memory_budget="1MiB"
        )
    scores = measure_importance(
        str(folder), str(tmp_path / "out"), corpus="self", samples=2, seq_len=6
    )
    assert scores.made_by["tokens"] == 12
    assert json.loads(json.dumps(scores.made_by)) == scores.made_by
