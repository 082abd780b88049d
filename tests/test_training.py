"""Training learns, resumes to the same weights, and writes a folder like any other."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from functools import partial
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerControl, TrainerState

import minitron
from minitron.errors import CorpusError, MinitronError, OutputError, TargetError
from minitron.progress import Progress
from minitron.recipes.training import TrainRecipe
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source
from minitron.text.corpus import load_ids
from minitron.training.fitting import Texts, fit
from minitron.training.progress import LossCurve
from minitron.training.trainers import TextTrainer
from tests.tiny import SIZES, tiny_folder, weights_of

SEQ_LEN = 16


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text that is easy to learn: counting, from random starts."""
    path = tmp_path_factory.mktemp("text") / "ids.npy"
    starts = np.random.default_rng(0).integers(5, SIZES["vocab_size"] - SEQ_LEN, (48, 1))
    np.save(path, starts + np.arange(SEQ_LEN))
    return str(path)


class WholeLogits(Trainer):
    """Trainer as it is, with the model's own loss over whole logits."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        batch = {key: value for key, value in inputs.items() if key != "row"}
        return super().compute_loss(model, batch, *args, **kwargs)


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


def test_continued_training_lowers_the_loss_on_held_out_text(
    start: Path, text: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    minitron.train(
        str(out),
        init=str(start),
        corpus=text,
        eval_corpus=text,
        steps=20,
        batch_size=8,
        learning_rate=3e-3,
    )
    evaluated = [r["eval_loss"] for r in records(out) if "eval_loss" in r]
    assert evaluated[-1] < evaluated[0] - 1
    assert minitron.evaluate(str(out), corpus=text).loss < evaluated[0] - 1
    assert not (out / "checkpoints").exists()
    assert (
        json.loads((out / "minitron.json").read_text())["training"]["corpus_tokens"] == 48 * SEQ_LEN
    )


def test_the_model_that_was_trained_has_the_settings_that_it_had(
    start: Path, text: str, tmp_path: Path
) -> None:
    """A Trainer sets use_cache to false, and may set more."""

    class Setting(TextTrainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            self.model.config.my_own = "left over"
            self.model.generation_config.max_length = 7
            del self.model.config.norm_eps
            return super().train(*args, **kwargs)

    model = load_model(open_source(str(start)), dtype=torch.float32)
    before = (model.config.to_dict(), model.generation_config.to_dict())
    assert model.config.use_cache
    recipe = TrainRecipe(out="unused", corpus=text, init=str(start), steps=1, batch_size=2)
    texts = Texts(load_ids(text, seq_len=SEQ_LEN), None)
    fit(model, texts, tmp_path / "checkpoints", recipe, make_trainer=Setting, models={})
    assert (model.config.to_dict(), model.generation_config.to_dict()) == before


WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("nemotron", {}),
    "tied": ("nemotron-tied", {}),
    "autocast": ("llama", {"autocast": "bfloat16"}),
    "checkpointing": ("qwen3", {"gradient_checkpointing": True}),
    # 48 rows: the fourth step of an epoch has one batch of three rows less.
    "accumulated": ("nemotron", {"gradient_accumulation_steps": 3, "batch_size": 5, "steps": 7}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_loss_and_weight_is_that_of_trainer_with_whole_logits(
    way: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant, changed = WAYS[way]
    settings = {"steps": 5, "batch_size": 8, "learning_rate": 3e-3, "dtype": "float32"}
    settings |= {
        "autocast": "float32",
        "trainer": {"logging_steps": 1},
        "eval_corpus": text,
        **changed,
    }
    init = str(tiny_folder(tmp_path / "start", variant))
    minitron.train(str(tmp_path / "ours"), init=init, corpus=text, **settings)
    monkeypatch.setattr("minitron.training.trained_folder.TextTrainer", WholeLogits)
    minitron.train(str(tmp_path / "theirs"), init=init, corpus=text, **settings)
    is_exact = settings["autocast"] != "bfloat16"
    tolerance = 1e-5 if is_exact else 1e-2
    for ours, theirs in zip(records(tmp_path / "ours"), records(tmp_path / "theirs"), strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)
    if not is_exact:  # AdamW makes large steps of small gradients, rounded or not
        return
    for name, tensor in weights_of(tmp_path / "theirs").items():
        ours = weights_of(tmp_path / "ours")[name]
        torch.testing.assert_close(ours, tensor, rtol=1e-2, atol=1e-5)


def test_no_logits_of_a_whole_batch_are_made(
    start: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Size] = []
    head = torch.nn.Linear.forward

    def noted(self: torch.nn.Linear, states: torch.Tensor) -> torch.Tensor:
        output = head(self, states)
        seen.append(output.shape)
        return output

    monkeypatch.setattr(torch.nn.Linear, "forward", noted)
    settings = {"init": str(start), "corpus": text, "eval_corpus": text, "steps": 2}
    minitron.train(str(tmp_path / "out"), **settings)
    assert seen
    assert SIZES["vocab_size"] not in {shape[-1] for shape in seen}


def test_from_scratch_starts_zero_centred_whatever_init_holds(
    start: Path, text: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    minitron.train(
        str(out),
        init=str(start),
        corpus=text,
        scratch=True,
        steps=1,
        learning_rate=1e-12,
        dtype="float32",
    )
    weights = weights_of(out)
    assert weights["model.norm.weight"].abs().max() < 1e-6
    assert weights["model.layers.1.input_layernorm.bias"].abs().max() < 1e-6
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.hidden_size == SIZES["hidden_size"]


def test_the_same_recipe_gives_the_same_bytes(start: Path, text: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        minitron.train(str(tmp_path / name), init=str(start), corpus=text, scratch=True, steps=3)
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if p.name != "README.md"}
        for name in ("one", "two")
    )
    assert one == two


def test_an_interrupted_run_resumes_to_the_weights_of_an_unbroken_one(
    start: Path,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "minitron")
    settings = {"init": str(start), "corpus": text, "steps": 8, "save_steps": 2, "batch_size": 4}
    minitron.train(str(tmp_path / "unbroken"), **settings)
    step = Trainer.training_step
    taken = iter(range(100))

    def failing(self: Trainer, *args: object, **kwargs: object) -> torch.Tensor:
        if next(taken) == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", failing)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        minitron.train(str(tmp_path / "broken"), **settings)
    assert interrupted.value.__notes__ == ["the same command goes on from step 4"]
    assert not [message for message in caplog.messages if "going on" in message]
    assert not (tmp_path / "broken").exists()
    with pytest.raises(OutputError, match="steps 8, now 9"):
        minitron.train(str(tmp_path / "broken"), **{**settings, "steps": 9})
    monkeypatch.undo()
    minitron.train(str(tmp_path / "broken"), **settings)
    assert "going on from step 4" in caplog.messages
    unbroken, broken = weights_of(tmp_path / "unbroken"), weights_of(tmp_path / "broken")
    assert all(torch.equal(tensor, broken[name]) for name, tensor in unbroken.items())
    assert records(tmp_path / "unbroken") == records(tmp_path / "broken")


def test_each_evaluation_has_its_own_bar_and_the_first_comes_before_the_training(
    start: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, float]] = []
    counted: Counter[str] = Counter()

    class Watched(Progress):
        def __init__(self, what: str, **options: Any) -> None:
            super().__init__(what, **options)
            self.what = what
            begun.append((what, options["total"]))

        def advance(self, count: float = 1) -> None:
            super().advance(count)
            counted[self.what] += int(count)

    monkeypatch.setattr("minitron.training.progress.Progress", Watched)
    settings = {"init": str(start), "corpus": text, "eval_corpus": text, "batch_size": 4}
    minitron.train(str(tmp_path / "out"), steps=3, save_steps=2, **settings)
    evaluation, training = ("evaluate", 12), ("train", 3 * 4 * SEQ_LEN)
    assert begun == [evaluation, training, evaluation, evaluation]
    assert counted == {"evaluate": 36, "train": training[1]}


def test_ctrl_c_ends_a_process_with_the_step_from_which_the_same_command_continues(
    start: Path, text: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "minitron", "train", "out", "--init", str(start)]
    command += ["--corpus", text, "--steps", "100000", "--save-steps", "1", "--batch-size", "4"]
    errors = tmp_path / "errors.txt"
    # A test run in the background ignores Ctrl-C, and so would its children.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with (
        errors.open("w") as file,
        subprocess.Popen(command, cwd=tmp_path, stderr=file, preexec_fn=heeds) as run,
    ):
        try:
            until = time.monotonic() + 60
            states = "out.partial/checkpoints/checkpoint-*/trainer_state.json"
            while not list(tmp_path.glob(states)):
                assert run.poll() is None, errors.read_text()
                assert time.monotonic() < until
                time.sleep(0.05)
            run.send_signal(signal.SIGINT)
            assert run.wait(60) == 130
        finally:
            run.kill()
    last = errors.read_text().splitlines()[-1]
    pattern = r"minitron: interrupted; the same command goes on from step [1-9]\d*"
    assert re.fullmatch(pattern, last), last
    assert "\r" not in errors.read_text()


def test_another_model_under_the_same_name_does_not_take_up_a_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = tiny_folder(tmp_path / "init")
    settings = {"init": str(init), "corpus": text, "steps": 4, "save_steps": 1, "batch_size": 4}
    step, taken = Trainer.training_step, iter(range(100))

    def failing(self: Trainer, *args: object, **kwargs: object) -> torch.Tensor:
        if next(taken) == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", failing)
    with pytest.raises(KeyboardInterrupt):
        minitron.train(str(tmp_path / "out"), **settings)
    tiny_folder(init, seed=77)
    with pytest.raises(OutputError, match=r"out\.partial was begun with other initial model under"):
        minitron.train(str(tmp_path / "out"), **settings)


def test_a_resumed_run_averages_its_losses_as_an_unbroken_one(
    start: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"init": str(start), "corpus": text, "steps": 15, "save_steps": 7, "batch_size": 4}
    minitron.train(str(tmp_path / "unbroken"), **settings)
    save = Trainer._save_checkpoint

    def failing(self: Trainer, *args: object, **kwargs: object) -> None:
        save(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save_checkpoint", failing)
    with pytest.raises(KeyboardInterrupt):
        minitron.train(str(tmp_path / "broken"), **settings)
    monkeypatch.undo()
    minitron.train(str(tmp_path / "broken"), **settings)
    assert [record["step"] for record in records(tmp_path / "broken")] == [1, 7, 10, 14, 15]
    assert records(tmp_path / "broken") == records(tmp_path / "unbroken")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("killed_in", ["write_weights", "write_card", "_remove_checkpoints"])
def test_a_run_killed_after_its_last_step_has_only_the_folder_to_write(
    killed_in: str, start: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 12 batches an epoch: transformers would go on to its end, past the last step.
    settings = {"init": str(start), "corpus": text, "batch_size": 4, "eval_corpus": text}
    settings |= {"steps": 5, "save_steps": 2, "min_learning_rate": 1e-4}
    minitron.train(str(tmp_path / "unbroken"), **settings)

    def killed(*found: Any, **_: Any) -> None:
        if killed_in == "_remove_checkpoints":
            next(found[0].rglob("optimizer.pt")).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(f"minitron.training.trained_folder.{killed_in}", killed)
    with pytest.raises(KeyboardInterrupt):
        minitron.train(str(tmp_path / "broken"), **settings)
    monkeypatch.undo()
    made = []
    step = Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda *a, **k: made.append(1) or step(*a, **k))
    minitron.train(str(tmp_path / "broken"), **settings)
    assert not made
    assert files_of(tmp_path / "broken").keys() == files_of(tmp_path / "unbroken").keys()
    for name, content in files_of(tmp_path / "unbroken").items():
        if name != "README.md":  # which names the folder
            assert files_of(tmp_path / "broken")[name] == content


def test_a_loss_that_is_no_number_ends_the_run_in_one_line(
    start: Path,
    text: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("minitron.progress._is_watched", lambda: True)
    monkeypatch.setattr("minitron.progress._DELAY", 0)
    settings = {"init": str(start), "corpus": text, "steps": 20, "learning_rate": 1e20}
    partial = tmp_path / "out.partial"
    with pytest.raises(
        TargetError,
        match=rf"became (nan|inf) by step \d+: remove {partial} and begin again with a small",
    ):
        minitron.train(str(tmp_path / "out"), **settings)
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match=r", and the \w+ became \S+ by step \d+: remove it$"):
        minitron.train(str(tmp_path / "out"), **{**settings, "learning_rate": 1e-4})
    assert capfd.readouterr().err.endswith(
        "\n"
    )  # the bar is closed: what is printed next has its own line
    curve = (partial / "training.jsonl").read_text()
    assert "NaN" not in curve
    assert "Infinity" not in curve
    shutil.rmtree(partial)
    minitron.train(str(tmp_path / "out"), **{**settings, "steps": 1, "learning_rate": 1e-4})


def test_half_precision_may_overflow_while_its_scale_is_found(tmp_path: Path) -> None:
    state = TrainerState(global_step=1, log_history=[{"step": 1, "loss": 2.0, "grad_norm": inf}])
    curve = LossCurve(tmp_path / "training.jsonl")
    for fp16 in (True, False):
        arguments = SimpleNamespace(fp16=fp16)
        outcome = nullcontext() if fp16 else pytest.raises(TargetError, match="gradient became inf")
        with outcome:
            curve.on_log(arguments, state, TrainerControl())  # type: ignore[arg-type]


def test_text_of_no_whole_batch_is_refused_where_such_are_dropped(
    start: Path, text: str, tmp_path: Path
) -> None:
    settings = {"batch_size": 49, "trainer": {"dataloader_drop_last": True}}
    with pytest.raises(CorpusError, match="48 sequences, a batch 49"):
        minitron.train(str(tmp_path / "out"), init=str(start), corpus=text, **settings)
    assert not list(tmp_path.iterdir())


def test_a_tracker_writes_what_it_wants_into_the_folder(
    start: Path, text: str, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    settings = {"init": str(start), "corpus": text, "steps": 2, "report_to": "tensorboard"}
    minitron.train(str(tmp_path / "out"), **settings)
    assert list((tmp_path / "out" / "runs").rglob("events*"))


@pytest.mark.parametrize("family", ["llama", "qwen3-biased-tied", "gemma2", "olmo2", "phi3"])
def test_other_families_train_too(family: str, text: str, tmp_path: Path) -> None:
    start = tiny_folder(tmp_path / "start", family)
    minitron.train(str(tmp_path / "out"), init=str(start), corpus=text, steps=2)
    before, after = weights_of(start), weights_of(tmp_path / "out")
    assert before.keys() == after.keys()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": -1}, "--batch-size is -1: it must be at least 1"),
        ({"learning_rate": 0.0}, "--learning-rate is 0: it must be above 0"),
        ({"learning_rate": float("inf")}, "--learning-rate is inf: it must be above 0 and finite"),
        ({"epochs": float("inf")}, "epochs is inf"),
        ({"warmup_steps": -1}, "--warmup-steps is -1: it must be at least 0"),
        ({"weight_decay": -0.1}, r"--weight-decay is -0\.1"),
        ({"max_grad_norm": float("nan")}, "--max-grad-norm is nan"),
        (
            {"min_learning_rate": 2e-4},
            r"--min-learning-rate is 0\.0002: .* --learning-rate, 0\.0001",
        ),
        ({"seed": -1}, "seed is -1"),
        ({"adam_beta2": 1.5}, r"--adam-beta2 is 1\.5: it must be at least 0 and at most 1"),
        ({"init": "tiny", "corpus": "missing.txt"}, "missing.txt does not exist"),
    ],
)
def test_settings_that_mean_nothing_are_refused_with_nothing_written(
    setting: dict[str, object], message: str, start: Path, text: str, tmp_path: Path
) -> None:
    with pytest.raises(MinitronError, match=message):
        minitron.train(str(tmp_path / "out"), **{"init": str(start), "corpus": text, **setting})
    assert list(tmp_path.iterdir()) == []


def test_ids_outside_the_vocabulary_are_refused(start: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.full((2, SEQ_LEN), SIZES["vocab_size"]))
    with pytest.raises(MinitronError, match="token id 101, outside the model's vocabulary of 101"):
        minitron.train(str(tmp_path / "out"), init=str(start), corpus=str(tmp_path / "ids.npy"))
    assert [path.name for path in tmp_path.iterdir()] == ["ids.npy"]


@pytest.mark.slow
def test_two_processes_have_the_losses_and_weights_of_one(
    start: Path, text: str, tmp_path: Path
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = ["--steps", "5", "--batch-size", "4", "--dtype", "float32", "--autocast", "float32"]
    two = [*torchrun, "-m", "minitron", "train", str(tmp_path / "two"), "--init", str(start)]
    ran = subprocess.run(
        [*two, "--corpus", text, "--eval-corpus", text, "--learning-rate", "1e-2", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    settings = {"steps": 5, "batch_size": 8, "dtype": "float32", "autocast": "float32"}
    one = {"init": str(start), "corpus": text, "eval_corpus": text, "learning_rate": 1e-2}
    minitron.train(str(tmp_path / "one"), **one, **settings)
    for ours, theirs in zip(records(tmp_path / "two"), records(tmp_path / "one"), strict=True):
        assert ours.keys() == theirs.keys()
        for key in {"loss", "eval_loss"} & ours.keys():
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4)
    for name, tensor in weights_of(tmp_path / "one").items():
        torch.testing.assert_close(weights_of(tmp_path / "two")[name], tensor, rtol=1e-3, atol=1e-4)
