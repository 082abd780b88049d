"""Distilling trains on the teacher's predictions: the right loss, resumable, in many processes."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainerState

import minitron
from minitron.cli import main
from minitron.errors import CorpusError, MinitronError, OutputError, TargetError, TokenizerError
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source
from minitron.training.teacher import DistillLoss, RunningTeacher
from minitron.training.trainers import DistillTrainer, head_computes_loss
from tests.processes import RANKS, exit_code, run_command, together
from tests.tiny import SIZES, tiny_folder, weights_of

SEQ_LEN = 13
STUDENT = {"hidden_size": 30, "intermediate_size": 44, "num_hidden_layers": 3}
SHORT: dict[str, Any] = {
    "steps": 4,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "autocast": "float32",  # `auto` follows the processor, and so would the numbers
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, two students, and a text that is easy to learn: counting."""
    root = tmp_path_factory.mktemp("models")
    tiny_folder(root / "teacher", seed=1)
    tiny_folder(root / "student", seed=2, **STUDENT)
    tiny_folder(root / "shallow", seed=3, num_hidden_layers=3)
    tiny_folder(root / "deep", seed=4, num_hidden_layers=6, hidden_size=54)
    starts = np.random.default_rng(0).integers(5, SIZES["vocab_size"] - SEQ_LEN, (24, 1))
    np.save(root / "text.npy", starts + np.arange(SEQ_LEN))
    np.save(root / "held-out.npy", starts[:6] + 1 + np.arange(SEQ_LEN))
    return root


def distilled(folders: Path, out: Path, student: str = "student", **settings: Any) -> Path:
    options = {"teacher": str(folders / "teacher"), "corpus": str(folders / "text.npy"), **SHORT}
    minitron.distill(str(folders / student), str(out), **{**options, **settings})
    return out


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder) if "loss" in record]


def logits_of(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model = load_model(open_source(str(folder)), dtype=torch.float32)
    with torch.no_grad():
        return model(ids).logits[:, :-1].flatten(0, 1)


def kl_of(folders: Path) -> float:
    """Between untrained student and teacher, over the whole text, as the paper writes it."""
    ids = torch.from_numpy(np.load(folders / "text.npy")).long()
    student, teacher = (logits_of(folders / name, ids) for name in ("student", "teacher"))
    target = teacher.log_softmax(-1)
    return float(F.kl_div(student.log_softmax(-1), target, log_target=True, reduction="batchmean"))


ALL_AT_ONCE: dict[str, Any] = {"steps": 1, "batch_size": 24, "learning_rate": 1e-9}


def test_the_first_loss_is_the_kl_of_the_two_models(folders: Path, tmp_path: Path) -> None:
    out = distilled(folders, tmp_path / "out", **ALL_AT_ONCE)
    assert losses(out)[0] == pytest.approx(kl_of(folders), rel=1e-5)


def test_batches_that_are_accumulated_make_the_step_of_one(folders: Path, tmp_path: Path) -> None:
    one = {"steps": 3, "learning_rate": 1e-2, "dtype": "float32"}
    whole = distilled(folders, tmp_path / "whole", batch_size=8, **one)
    parts = distilled(
        folders, tmp_path / "parts", batch_size=2, gradient_accumulation_steps=4, **one
    )
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)
    for name, tensor in weights_of(whole).items():
        torch.testing.assert_close(weights_of(parts)[name], tensor, rtol=1e-3, atol=1e-4)


def test_checkpointing_activations_changes_no_loss(folders: Path, tmp_path: Path) -> None:
    plain = distilled(folders, tmp_path / "plain", "shallow", alpha=0.5)
    saving = distilled(
        folders, tmp_path / "saving", "shallow", alpha=0.5, gradient_checkpointing=True
    )
    assert losses(saving) == pytest.approx(losses(plain), rel=1e-5)


def test_bfloat16_autocast_stays_near_float32(folders: Path, tmp_path: Path) -> None:
    single = distilled(folders, tmp_path / "single", autocast="float32")
    half = distilled(folders, tmp_path / "half", autocast="bfloat16")
    assert losses(half) == pytest.approx(losses(single), rel=0.05)
    assert losses(half) != losses(single)


def test_a_student_learns_what_its_teacher_says_and_is_measured_on_text(
    folders: Path, tmp_path: Path
) -> None:
    held_out = str(folders / "held-out.npy")
    out = distilled(
        folders,
        tmp_path / "out",
        steps=30,
        learning_rate=1e-2,
        eval_corpus=held_out,
        save_steps=15,
        dtype="float32",
    )
    assert losses(out)[-1] < losses(out)[0] / 2
    evaluated = {r["step"]: r["eval_loss"] for r in records(out) if "eval_loss" in r}
    assert list(evaluated) == [0, 15, 30]
    student = minitron.evaluate(str(folders / "student"), corpus=held_out).loss
    assert evaluated[0] == pytest.approx(student, rel=1e-4)
    assert evaluated[30] == pytest.approx(minitron.evaluate(str(out), corpus=held_out).loss, 1e-4)


def test_the_folder_records_teacher_distance_and_tokens(folders: Path, tmp_path: Path) -> None:
    out = distilled(folders, tmp_path / "out", kind="jsd", beta=0.3, temperature=2.0)
    record = json.loads((out / "minitron.json").read_text())
    assert record["command"] == "distill"
    assert record["teacher"]["name"] == str(folders / "teacher")
    assert record["teacher"]["parameters"] == minitron.inspect(str(folders / "teacher")).parameters
    assert record["source"]["name"] == str(folders / "student")
    assert record["training"]["tokens"] == 4 * 4 * SEQ_LEN
    card = (out / "README.md").read_text()
    assert "Jensen-Shannon divergence between the predictions of both at temperature 2" in card
    assert "Teacher: `teacher`" in card
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize("kind", ["reverse_kl", "mse", "cosine"])
def test_every_distance_trains_beside_cross_entropy(
    kind: str, folders: Path, tmp_path: Path
) -> None:
    alone = distilled(folders, tmp_path / "alone", kind=kind, **ALL_AT_ONCE)
    both = distilled(folders, tmp_path / "both", kind=kind, ce_weight=0.5, **ALL_AT_ONCE)
    text = minitron.evaluate(str(folders / "student"), corpus=str(folders / "text.npy"), seq_len=12)
    assert losses(both)[0] - losses(alone)[0] == pytest.approx(text.loss / 2, rel=1e-3)


def test_the_teacher_neither_learns_nor_drops_out(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    step = DistillTrainer.training_step

    def watched(self: DistillTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(self, *args, **kwargs)
        model = self._teacher._model  # type: ignore[attr-defined]
        gradients = [p for p in model.parameters() if p.requires_grad or p.grad is not None]
        seen.append((model.training, gradients, model.dtype))
        return loss

    monkeypatch.setattr(DistillTrainer, "training_step", watched)
    distilled(folders, tmp_path / "out", teacher_dtype="bfloat16", autocast="float32")
    assert seen == [(False, [], torch.bfloat16)] * 4


ALL_STATES = "embedding,hidden,mlp_input,mlp_output,attention"


@pytest.mark.parametrize("variant", ["nemotron-tied", "qwen3", "gemma2", "olmo2"])
def test_a_teacher_read_layer_by_layer_says_the_same(
    variant: str, folders: Path, tmp_path: Path
) -> None:
    settings = {"teacher": str(tiny_folder(tmp_path / "teacher", variant, seed=5)), "alpha": 0.5}
    settings |= {"inner_states": ALL_STATES, "layer_map": "3:2,1:0"}
    whole = distilled(folders, tmp_path / "whole", **settings)
    streamed = distilled(folders, tmp_path / "streamed", stream_teacher=True, **settings)
    assert records(streamed) == records(whole)


def test_inner_states_are_compared_where_half_the_layers_are_cut(
    folders: Path, tmp_path: Path
) -> None:
    settings = {"teacher": str(folders / "deep"), **ALL_AT_ONCE}
    without = distilled(folders, tmp_path / "without", "shallow", alpha=0.0, **settings)
    dynamic = distilled(folders, tmp_path / "dynamic", "shallow", **settings)
    fixed = distilled(folders, tmp_path / "fixed", "shallow", alpha=0.25, **settings)
    assert losses(dynamic)[0] == pytest.approx(2 * losses(without)[0], rel=1e-5)
    assert 0 < losses(fixed)[0] - losses(without)[0] < 0.25 * 2 * 2
    assert weights_of(dynamic).keys() == weights_of(folders / "shallow").keys()
    assert losses(distilled(folders, tmp_path / "less", "shallow", **ALL_AT_ONCE)) == losses(
        distilled(folders, tmp_path / "same", "shallow", alpha=0.0, **ALL_AT_ONCE)
    )


@pytest.mark.parametrize("states", ["attention", "mlp_output", ALL_STATES])
def test_every_inner_state_is_learnt(states: str, folders: Path, tmp_path: Path) -> None:
    settings = {"teacher": str(folders / "deep"), "inner_states": states, "layer_map": "4:1,5:2"}
    without = distilled(folders, tmp_path / "without", "shallow", alpha=0.0, **ALL_AT_ONCE)
    least = {"alpha": 100.0, "steps": 12, "batch_size": 24, "learning_rate": 1e-2}
    out = distilled(folders, tmp_path / "out", "shallow", **settings, **least)
    assert losses(out)[0] > losses(without)[0]
    assert losses(out)[-1] < losses(out)[0] * 0.95
    assert weights_of(out).keys() == weights_of(folders / "shallow").keys()
    saving = distilled(
        folders, tmp_path / "saving", "shallow", gradient_checkpointing=True, **settings, **least
    )
    assert losses(saving) == pytest.approx(losses(out), rel=1e-4)


def test_the_dynamic_weight_leaves_cross_entropy_out(folders: Path, tmp_path: Path) -> None:
    def first_loss(alpha: float | str, ce_weight: float) -> float:
        settings = {"teacher": str(folders / "deep"), "alpha": alpha, "ce_weight": ce_weight}
        out = tmp_path / f"{alpha}-{ce_weight}"
        return losses(distilled(folders, out, "shallow", **settings, **ALL_AT_ONCE))[0]

    both = first_loss(0.0, 0.5)
    assert first_loss("dynamic", 0.5) == pytest.approx(both + first_loss(0.0, 0.0), rel=1e-5)


def test_the_projection_learns_and_is_resumed(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"alpha": "dynamic", "steps": 4, "save_steps": 2, "learning_rate": 1e-2}
    unbroken = distilled(folders, tmp_path / "unbroken", **settings)
    interrupt_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        distilled(folders, tmp_path / "broken", **settings)
    monkeypatch.undo()
    broken = distilled(folders, tmp_path / "broken", **settings)
    assert records(broken) == records(unbroken)


def press_ctrl_c() -> None:
    raise KeyboardInterrupt


def interrupt_at(
    step: int, monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[], None] = press_ctrl_c
) -> None:
    """Stop as a user does, after so many whole batches."""
    taken, training_step = iter(range(1000)), Trainer.training_step

    def failing(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if next(taken) == step:
            interrupt()
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", failing)


def distill_until_killed(step: int, folders: Path, out: Path, settings: dict[str, Any]) -> None:
    """Distill, and die in the middle of a step."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_at(step, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))
        distilled(folders, out, **settings)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_losses_of_an_unbroken_one(
    folders: Path, tmp_path: Path
) -> None:
    settings = {"steps": 25, "save_steps": 7, "warmup_steps": 3}
    killed = exit_code(distill_until_killed, 17, folders, tmp_path / "broken", settings)
    assert killed == -signal.SIGKILL
    assert (tmp_path / "broken.partial" / "checkpoints" / "checkpoint-14").is_dir()
    broken = distilled(folders, tmp_path / "broken", **settings)
    unbroken = distilled(folders, tmp_path / "unbroken", **settings)
    assert [record["step"] for record in records(broken)] == [1, 7, 10, 14, 20, 21, 25]
    assert records(broken) == records(unbroken)
    one, other = weights_of(unbroken), weights_of(broken)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, os.strerror(28))], ids=["stopped", "disk full"]
)
def test_a_checkpoint_cut_short_is_passed_over_for_the_last_whole_one(
    error: BaseException, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 6, "save_steps": 2}
    unbroken = distilled(folders, tmp_path / "unbroken", **settings)
    save = TrainerState.save_to_json

    def cut_short(self: TrainerState, path: str) -> None:
        if self.global_step == 4:
            Path(path).write_text('{"epoch": 0.')
            raise error
        save(self, path)

    monkeypatch.setattr(TrainerState, "save_to_json", cut_short)
    is_full = isinstance(error, OSError)
    message = "no space left for .*broken: free some and run again; what is done stays in"
    raised = (OutputError, message) if is_full else (KeyboardInterrupt, None)
    with pytest.raises(raised[0], match=raised[1]):
        distilled(folders, tmp_path / "broken", **settings)
    monkeypatch.undo()
    checkpoints = tmp_path / "broken.partial" / "checkpoints"
    assert {path.name for path in checkpoints.glob("check*")} == {"checkpoint-2", "checkpoint-4"}
    broken = distilled(folders, tmp_path / "broken", **settings)
    assert records(broken) == records(unbroken)


def test_other_settings_do_not_take_up_a_run(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"save_steps": 2, "trainer": {"optim": "adamw_torch"}}
    interrupt_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        distilled(folders, tmp_path / "out", **settings)
    changed = {"temperature": 2.0, "kind": "reverse_kl", "trainer": {"optim": "sgd"}}
    with pytest.raises(OutputError) as raised:
        distilled(folders, tmp_path / "out", **{**settings, **changed})
    for message in (
        "kind 'forward_kl', now 'reverse_kl'",
        "temperature 1.0, now 2.0",
        "trainer {'optim': 'adamw_torch'}, now {'optim': 'sgd'}",
    ):
        assert message in str(raised.value)


def test_other_text_under_the_same_name_does_not_take_up_a_run(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.npy"
    text.write_bytes((folders / "text.npy").read_bytes())
    settings = {"corpus": str(text), "save_steps": 2}
    interrupt_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        distilled(folders, tmp_path / "out", **settings)
    text.write_bytes((folders / "held-out.npy").read_bytes())
    with pytest.raises(OutputError, match=r"out\.partial was begun with other text under the same"):
        distilled(folders, tmp_path / "out", **settings)


def test_another_teacher_under_the_same_name_does_not_take_up_a_run(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Path(shutil.copytree(folders / "teacher", tmp_path / "teacher"))
    settings = {"teacher": str(teacher), "save_steps": 2}
    interrupt_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        distilled(folders, tmp_path / "out", **settings)
    shutil.rmtree(teacher)
    tiny_folder(teacher, seed=77)
    with pytest.raises(OutputError, match=r"out\.partial was begun with other teacher under the"):
        distilled(folders, tmp_path / "out", **settings)


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(
    folders: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        TargetError, match=r"became (nan|inf) by step \d+: remove .*out.partial and"
    ):
        distilled(folders, tmp_path / "out", steps=9, save_steps=3, learning_rate=1e12)
    for checkpoint in (tmp_path / "out.partial" / "checkpoints").glob("checkpoint-*"):
        assert all(tensor.isfinite().all() for tensor in weights_of(checkpoint).values())


def with_words(folder: Path, source: Path, renamed: dict[int, str] | None = None) -> Path:
    """A copy of a model with a tokenizer of words, some of them called otherwise."""
    load_model(open_source(str(source))).save_pretrained(folder)
    names = {number: f"w{number}" for number in range(SIZES["vocab_size"])} | (renamed or {})
    words = WordLevel({name: number for number, name in names.items()}, unk_token="w0")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def test_tokens_that_differ_are_named_one_by_one(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a message of long paths would be cut
    student = with_words(Path("student"), folders / "student")
    renamed = {7: "seven", 8: "eight", 9: "nine", 90: "ninety"}
    teacher = with_words(Path("teacher"), folders / "teacher", renamed)
    with pytest.raises(TokenizerError) as raised:
        minitron.distill(
            str(student), "out", teacher=str(teacher), corpus=str(folders / "text.npy"), **SHORT
        )
    assert str(raised.value) == (
        "student and teacher differ in 4 tokens: "
        f"id 7 is 'w7' in {student}, 'seven' in {teacher}; "
        "id 8 'w8' and 'eight'; id 9 'w9' and 'nine'; ...: "
        "distill from a teacher with the student's tokenizer"
    )
    assert not (tmp_path / "out.partial").exists()


def test_models_with_equal_tokens_learn_from_text(folders: Path, tmp_path: Path) -> None:
    student = with_words(tmp_path / "student", folders / "student")
    teacher = with_words(tmp_path / "teacher", folders / "teacher")
    (tmp_path / "text.txt").write_text(" ".join(f"w{n % 90}" for n in range(200)))
    settings = {"teacher": str(teacher), "corpus": str(tmp_path / "text.txt"), "seq_len": 11}
    out = distilled(folders, tmp_path / "out", str(student), **settings)
    assert json.loads((out / "minitron.json").read_text())["training"]["corpus_tokens"] == 18 * 11


@pytest.mark.parametrize("cache", [None, {}, {"top_k": 9}], ids=["beside", "cached", "likeliest"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("students", "teachers"), [(131, 107), (107, 131)])
def test_embeddings_padded_to_other_sizes_are_compared_over_the_rows_of_both(
    students: int,
    teachers: int,
    tied: bool,
    cache: dict[str, Any] | None,
    folders: Path,
    tmp_path: Path,
) -> None:
    sizes = {**STUDENT, "tie_word_embeddings": tied}
    student = words_model(tmp_path / "student", seed=2, vocab_size=students, **sizes)
    teacher = words_model(tmp_path / "teacher", seed=1, vocab_size=teachers)
    ids = torch.from_numpy(np.load(folders / "text.npy")).long()
    rows, labels = min(students, teachers), ids[:, 1:].flatten()
    ours, theirs = (logits_of(folder, ids)[:, :rows] for folder in (student, teacher))
    options: dict[str, Any] = {**ALL_AT_ONCE, "autocast": "float32"}
    options |= {"eval_corpus": str(folders / "text.npy")}
    if cache is not None:
        written = {"corpus": str(folders / "text.npy"), "dtype": "float32", **cache}
        minitron.cache_teacher(str(teacher), str(tmp_path / "says"), **written)
        options |= {"teacher": None, "teacher_cache": str(tmp_path / "says")}
    else:
        options |= {"teacher": str(teacher)}
    out = distilled(folders, tmp_path / "out", str(student), **options)

    if cache != {"top_k": 9}:
        p, q = theirs.log_softmax(-1), ours.log_softmax(-1)
        kl = float(F.kl_div(q, p, log_target=True, reduction="batchmean"))
        assert losses(out)[0] == pytest.approx(kl, rel=1e-5 if cache is None else 0.02)
    held_out = [record["eval_loss"] for record in records(out) if "eval_loss" in record]
    assert held_out[0] == pytest.approx(float(F.cross_entropy(ours, labels)), rel=1e-5)
    after = logits_of(out, ids)
    assert after.shape[1] == students
    assert int(after.argmax(1).max()) < rows
    # A tied embedding's padding rows are those of the output too: none is ever read.
    if students > rows:
        share = after.softmax(1)[:, rows:]
        assert float(share.max()) <= 1 / rows
        wanted = after[:, :rows].mean(1, keepdim=True).expand_as(after[:, rows:])
        torch.testing.assert_close(after[:, rows:], wanted, rtol=0, atol=0.02)


def test_ids_that_only_one_of_two_padded_models_has_are_refused(
    folders: Path, tmp_path: Path
) -> None:
    student = words_model(tmp_path / "student", seed=2, vocab_size=131, **STUDENT)
    teacher = words_model(tmp_path / "teacher", seed=1, vocab_size=107)
    np.save(tmp_path / "text.npy", np.full((3, SEQ_LEN), 110))
    with pytest.raises(
        CorpusError, match="holds token id 110, outside the model's vocabulary of 107"
    ):
        distilled(
            folders,
            tmp_path / "out",
            str(student),
            teacher=str(teacher),
            corpus=str(tmp_path / "text.npy"),
        )


def test_a_tokenizer_that_reaches_beyond_the_smaller_model_is_refused(
    folders: Path, tmp_path: Path
) -> None:
    student = words_model(tmp_path / "student", seed=2, vocab_size=131, **STUDENT)
    teacher = words_model(tmp_path / "teacher", seed=1, vocab_size=97)
    with pytest.raises(TokenizerError, match=r"131 token ids, .*teacher 97, .* ids up to 100: "):
        distilled(folders, tmp_path / "out", str(student), teacher=str(teacher))


def words_model(folder: Path, **sizes: Any) -> Path:
    """A model whose tokenizer has 101 tokens, with so many rows or more."""
    return with_words(folder, tiny_folder(folder.with_name(f"bare-{folder.name}"), **sizes))


def test_vocabularies_of_other_sizes_are_refused(folders: Path, tmp_path: Path) -> None:
    teacher = tiny_folder(tmp_path / "teacher", vocab_size=107)
    with pytest.raises(TokenizerError, match="student predicts 101 token ids, .*teacher 107"):
        distilled(folders, tmp_path / "out", teacher=str(teacher))
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_a_teacher_smaller_than_its_student_is_noted(
    folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    distilled(folders, tmp_path / "out", "teacher", teacher=str(folders / "student"))
    assert "it has less to teach" in caplog.text
    caplog.clear()
    distilled(folders, tmp_path / "other")
    assert "less to teach" not in caplog.text


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"teacher": None}, "no teacher: give --teacher MODEL"),
        ({"kind": "kld"}, "kind is kld: it must be one of forward_kl"),
        ({"temperature": 0.0}, "--temperature is 0: it must be above 0"),
        ({"ce_weight": -1.0}, "--ce-weight is -1: it must be at least 0"),
        ({"kind": "jsd", "beta": 1.5}, r"beta is 1\.5"),
        ({"alpha": -0.5}, r"--alpha is -0\.5: it must be 0 or above"),
        ({"alpha": 0.5, "inner_states": "heads"}, "--inner-states has 'heads': choose among embed"),
        ({"alpha": 0.5, "layer_map": "2-1"}, "--layer-map has '2-1': write TEACHER'S:STUDENT'S"),
        ({"alpha": 0.5, "layer_map": "1:3"}, "'1:3': the student's layers are 0 to 2"),
        ({"alpha": 0.5, "layer_map": "9:0"}, "'9:0': the teacher's layers are 0 to"),
        ({"layer_map": "1:1"}, "has no effect at --alpha auto here, only at --alpha dynamic"),
        ({"corpus": "missing.npy"}, "missing.npy does not exist"),
        ({"save_steps": 0}, "--save-steps is 0"),
        ({"seq_len": 1}, "--seq-len is 1: it must be at least 2"),
        ({"trainer": {"learning_rate": 1e-3}}, "trainer.learning_rate: give it as --learning-rate"),
        ({"report_to": "abacus"}, "report-to is 'abacus', which is no tracker"),
        ({"teacher_cache": "nowhere"}, "nowhere has no teacher-cache.json"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_taught_is_refused_with_nothing_written(
    setting: dict[str, Any], message: str, folders: Path, tmp_path: Path
) -> None:
    with pytest.raises(MinitronError, match=message):
        distilled(folders, tmp_path / "out", **setting)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_text_is_refused(folders: Path, tmp_path: Path) -> None:
    student = with_words(tmp_path / "student", folders / "student")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(MinitronError, match="holds 0 tokens, fewer than one sequence of 64"):
        distilled(folders, tmp_path / "out", str(student), corpus=str(tmp_path / "empty.txt"))
    assert not (tmp_path / "out.partial").exists()


def test_the_command_takes_a_recipe_with_trainer_arguments(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "steps: 2\nbatch_size: 4\nalpha: 0.5\n"
        "trainer:\n  optim: sgd\n  logging_steps: 1\n  lr_scheduler_kwargs: {min_lr: 0.00001}\n"
    )
    made: list[Any] = []
    start = Trainer.train

    def keep(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        made.append(self.args)
        return start(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", keep)
    out, text = str(tmp_path / "out"), str(folders / "text.npy")
    models = [str(folders / "student"), out, "--teacher", str(folders / "teacher")]
    recipe = ["--recipe", str(tmp_path / "recipe.yaml"), "--trainer.adam-beta1", "0.8"]
    main(["distill", *models, "--corpus", text, *recipe])
    assert (made[0].optim, made[0].logging_steps, made[0].adam_beta1) == ("sgd", 1, 0.8)
    assert made[0].lr_scheduler_kwargs == {"min_lr": 1e-5}
    assert len(losses(Path(out))) == 2


@pytest.mark.slow
def test_two_processes_have_the_losses_and_weights_of_one(folders: Path, tmp_path: Path) -> None:
    two, text = tmp_path / "two", folders / "text.npy"
    command = [
        *("distill", folders / "student", two, "--teacher", folders / "teacher"),
        *("--corpus", text, "--eval-corpus", text, "--steps", 5, "--save-steps", 3),
        *("--batch-size", 4, "--dtype", "float32", "--learning-rate", 1e-2, "--alpha", 0.5),
        *("--autocast", "float32"),
    ]
    together(run_command, str(tmp_path / "printed"), [*map(str, command)])
    printed = [tmp_path / f"printed-{rank}" for rank in range(RANKS)]
    assert "".join(path.read_text() for path in printed).count("two: written") == 1
    for path in printed:
        path.unlink()
    one = distilled(
        folders,
        tmp_path / "one",
        steps=5,
        batch_size=8,
        dtype="float32",
        learning_rate=1e-2,
        save_steps=3,
        eval_corpus=str(folders / "text.npy"),
        alpha=0.5,
    )
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    evaluated = [[r["eval_loss"] for r in records(out) if "eval_loss" in r] for out in (one, two)]
    assert evaluated[1] == pytest.approx(evaluated[0], rel=1e-4)
    for name, tensor in weights_of(one).items():
        torch.testing.assert_close(weights_of(two)[name], tensor, rtol=1e-3, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def learn_sharded(rank: int, folders: Path) -> None:
    """One process of two: the gradients of FSDP's shards are those of the whole weights."""
    dist.init_process_group("gloo")
    student = open_source(str(folders / "student"))
    teacher = RunningTeacher(load_model(open_source(str(folders / "teacher"))))
    ids = torch.from_numpy(np.load(folders / "text.npy")).long()
    mesh = init_device_mesh("cpu", (RANKS,))

    def learn(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
        output = teacher.predict(ids, torch.arange(len(ids)))
        labels, how = ids[:, 1:].flatten(), DistillLoss(ce_weight=0.3)

        def loss_of(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
            return output.loss(hidden[:, :-1].flatten(0, 1), head, labels, how)

        with head_computes_loss(model, loss_of):
            loss = model(input_ids=ids, use_cache=False).logits
        loss.backward()
        return loss.detach()

    whole = load_model(student, dtype=torch.float32)
    expected = learn(whole, ids)
    for reshards in (True, False):
        sharded = load_model(student, dtype=torch.float32)
        for part in (*sharded.model.layers, sharded):
            fully_shard(part, mesh=mesh, reshard_after_forward=reshards)
        loss = learn(sharded, ids.chunk(RANKS)[rank])
        dist.all_reduce(loss)
        torch.testing.assert_close(loss / RANKS, expected)
        for one, other in zip(sharded.parameters(), whole.parameters(), strict=True):
            gradient: Any = one.grad
            torch.testing.assert_close(gradient.full_tensor(), other.grad, rtol=1e-4, atol=1e-6)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_weights_sharded_by_fsdp2_get_the_gradients_of_whole_ones(folders: Path) -> None:
    together(learn_sharded, folders)
