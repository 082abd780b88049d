"""A teacher is read layer by layer where it does not fit beside its student's training."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import minitron
from minitron.model.architecture import Architecture
from minitron.model.decoder import LogitScale
from minitron.recipes.training import DistillRecipe
from minitron.sources.loading import loaded_bytes
from minitron.sources.opening import open_source
from minitron.training import teacher as teacher_module
from minitron.training.logit_losses import cross_entropy_loss
from minitron.training.teacher import DistillLoss, RunningTeacher, teacher_fits, training_bytes
from minitron.training.trainers import DistillTrainer, head_computes_loss
from tests.tiny import SIZES, tiny_folder, tiny_model

SEQ_LEN = 13


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_folder(root / "teacher", seed=1)
    tiny_folder(root / "student", seed=2, hidden_size=30, num_hidden_layers=3)
    ids = np.random.default_rng(0).integers(5, SIZES["vocab_size"], (8, SEQ_LEN))
    np.save(root / "text.npy", ids)
    return root


def recipe(**changed: Any) -> DistillRecipe:
    return DistillRecipe("student", "out", **{"corpus": "text.npy", "batch_size": 4, **changed})


def teacher_used(
    folders: Path, out: Path, free: int, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> str:
    """The kind of teacher that computed a training step's targets with so much memory free."""
    seen = []
    step = DistillTrainer.training_step

    def watched(self: DistillTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(type(self._teacher).__name__)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(DistillTrainer, "training_step", watched)
    monkeypatch.setattr(teacher_module, "free_memory", lambda _: free)
    models = {"teacher": str(folders / "teacher"), "corpus": str(folders / "text.npy")}
    minitron.distill(str(folders / "student"), str(out), **models, steps=1, **settings)
    return seen[0]


@pytest.mark.parametrize("variant", ["granite", "gemma2"])
def test_losses_are_of_logits_as_a_family_divides_and_caps_them(variant: str) -> None:
    """Both losses and all gradients are those of the logits that transformers returns."""
    student, teacher = tiny_model(variant), tiny_model(variant, seed=1)
    ids = torch.randint(5, 101, (2, 9), generator=torch.Generator().manual_seed(0))
    labels, scale = ids[:, 1:].flatten(), LogitScale.of(student.config)
    output = RunningTeacher(teacher).predict(ids, torch.arange(2))
    options = DistillLoss(temperature=2.0, ce_weight=0.3)

    def distance(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return output.loss(hidden[:, :-1].flatten(0, 1), head, labels, options, scale)

    def of_text(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        states = hidden[:, :-1].flatten(0, 1)
        return cross_entropy_loss(states, head, labels, logit_scale=scale)

    theirs = teacher(input_ids=ids).logits[:, :-1].flatten(0, 1).detach()
    ours = student(input_ids=ids).logits[:, :-1].flatten(0, 1)
    hard = F.cross_entropy(ours, labels)
    soft = F.kl_div((ours / 2).log_softmax(-1), (theirs / 2).softmax(-1), reduction="batchmean")
    config = student.config.to_dict()
    for loss_of, wanted in ((distance, 4 * soft + 0.3 * hard), (of_text, hard)):
        expected = torch.autograd.grad(wanted, list(student.parameters()), retain_graph=True)
        with head_computes_loss(student, loss_of):
            found = student(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(found, wanted)
        gradients = torch.autograd.grad(found, list(student.parameters()))
        for one, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert student.config.to_dict() == config


@pytest.mark.parametrize(
    ("free", "asked", "used"),
    [
        (1 << 50, None, "RunningTeacher"),
        (1000, None, "StreamedTeacher"),
        (1 << 50, True, "StreamedTeacher"),
        (1000, False, "RunningTeacher"),
    ],
)
def test_memory_decides_unless_it_is_asked_for(
    free: int,
    asked: bool | None,
    used: str,
    folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    found = teacher_used(folders, tmp_path / "out", free, monkeypatch, stream_teacher=asked)
    assert found == used
    messages = [r.getMessage() for r in caplog.records if "layer by layer" in r.getMessage()]
    assert len(messages) == (1 if asked is None and used == "StreamedTeacher" else 0)
    assert all("1000 bytes of memory are free" in line for line in messages)


def test_the_bound_is_the_teacher_beside_the_training(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = open_source(str(folders / "teacher"))
    ours = Architecture.from_config(open_source(str(folders / "student")).config)
    training = training_bytes(ours, recipe(), seq_len=SEQ_LEN, device="cpu")
    needed = training + loaded_bytes(teacher, None, "cpu")
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(teacher_module, "free_memory", lambda _, free=free: free)
        assert teacher_fits(teacher, recipe(), ours, SEQ_LEN) is fits
    monkeypatch.setattr(teacher_module, "free_memory", lambda _: needed)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not teacher_fits(teacher, recipe(), ours, SEQ_LEN)


def test_a_teacher_takes_the_bytes_of_its_computing_precision(folders: Path) -> None:
    teacher = open_source(str(folders / "teacher"))
    parameters = Architecture.from_config(teacher.config).parameters
    assert loaded_bytes(teacher, None, "cpu") == 4 * parameters
    assert loaded_bytes(teacher, torch.bfloat16, "cpu") == 2 * parameters


@pytest.mark.parametrize("variant", ["nemotron", "llama", "qwen3"])
def test_activations_are_about_what_autograd_keeps(variant: str) -> None:
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model = tiny_model(variant).train()
    ids = torch.randint(5, SIZES["vocab_size"], (4, SEQ_LEN))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    measured = sum(size for place, size in kept.items() if place not in parameters)
    assert states.requires_grad
    architecture = Architecture.from_config(model.config.to_dict())
    tokens, layers = ids.numel(), architecture.num_hidden_layers
    predicted = 4 * tokens * layers * teacher_module._activations_per_token(architecture)
    assert 0.9 < predicted / measured < 1.35


def test_checkpointing_keeps_one_number_a_channel_and_layer(folders: Path) -> None:
    ours = Architecture.from_config(open_source(str(folders / "teacher")).config)
    sizes = {"seq_len": 1000, "device": "cpu"}
    plain = training_bytes(ours, recipe(), **sizes)
    saving = training_bytes(ours, recipe(gradient_checkpointing=True), **sizes)
    inside, layers = teacher_module._activations_per_token(ours), ours.num_hidden_layers
    dropped = (layers - 1) * inside - layers * ours.hidden_size
    assert plain - saving == 4 * 4000 * dropped
