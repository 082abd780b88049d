"""Distilling: a pruned model learns from its original for a minute, so that it writes again.

The text is what the original samples itself; the loss is measured on other such text. Each step of
sampling, training and measuring holds a slot of its own, so that other visitors take turns. Nothing
is written: the trained weights end with the visit.

    for lesson in distill_live(entry, folder, measurements, semaphore, stop, write=...):
        lesson.losses
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minitron.sources.loading import default_device, load_model
from minitron.space.jobs.catalog import CatalogModel
from minitron.space.jobs.comparing import Column
from minitron.space.jobs.decoding import StopSignal
from minitron.space.jobs.measures import Measurements
from minitron.space.jobs.models import LoadedModel, ModelKey, load_entry
from minitron.space.jobs.preview import SMALL
from minitron.space.jobs.process import release_freed_memory
from minitron.space.jobs.request import VisitorError
from minitron.space.jobs.semaphore import FairSemaphore
from minitron.training.logit_losses import cross_entropy_loss
from minitron.training.teacher import DistillLoss, RunningTeacher
from minitron.training.trainers import head_computes_loss

STEPS, BATCH, MEASURED_EVERY = 48, 8, 4
LEARNING_RATE, WARM_UP = 2e-3, 5
SECONDS = 75.0  # of the whole, waiting for others included
SEQUENCES, CHUNK = 96, 16  # that the original samples to train on, and at once

WriteText = Callable[[LoadedModel], Column]


@dataclass(frozen=True)
class Lesson:
    """A distillation so far."""

    teacher: str
    note: str  # the step that runs now
    losses: tuple[tuple[int, float], ...] = ()  # after so many steps, on text it never trained on
    teacher_loss: float | None = None
    student: str = ""  # the name of the pruned model's folder
    steps: int = 0
    tokens: int = 0  # trained on; a sequence may come twice
    text_tokens: int = 0  # of the whole text to train on
    ending: str = ""  # why it ended before the last step
    texts: tuple[Column, ...] = ()  # before, and after
    is_done: bool = False


def can_distill(entry: CatalogModel) -> bool:
    """Whether a minute is enough for a model of this size."""
    return entry.inspection.parameters <= SMALL


def distill_live(
    entry: CatalogModel,
    folder: Path,
    measurements: Measurements,
    semaphore: FairSemaphore,
    stop: StopSignal,
    *,
    write: WriteText,
) -> Iterator[Lesson]:
    """The lesson as it proceeds, the last one with both texts. Raises MinitronError.

    Stopped early, it ends with what was learned until then.
    """
    if not can_distill(entry):
        raise VisitorError(
            f"{entry.name} has {entry.inspection.parameters:,} parameters, and this Space distills "
            f"models of at most {SMALL:,}: use `minitron distill`"
        )
    try:
        yield from _Course(entry, folder, measurements, semaphore, stop, write).run()
    finally:
        release_freed_memory()


@dataclass(frozen=True)
class _Course:
    entry: CatalogModel
    folder: Path
    measurements: Measurements
    semaphore: FairSemaphore
    stop: StopSignal
    write: WriteText

    def run(self) -> Iterator[Lesson]:
        """Sample, write, train, write again."""
        note = f"{self.entry.name} writes the text to learn from …"
        lesson = Lesson(self.entry.name, note, student=self.folder.name)
        for count in self.measurements.sample_training_text(self.entry, SEQUENCES, CHUNK):
            yield replace(lesson, note=f"{lesson.note} {count} of {SEQUENCES} sequences")
            if self.stop.is_set:
                break
        rows = torch.from_numpy(self.measurements.training_text(self.entry)).long()
        held_out = torch.from_numpy(np.load(self.measurements.held_out(self.entry))).long()
        pruned = CatalogModel("pruned", str(self.folder))
        student = load_entry(pruned, ModelKey(pruned.name))
        texts = (self.write(student),)  # in the precision of the result's own sample
        student.model = load_model(pruned.open(), dtype=torch.float32, device=default_device())
        teacher_model = load_model(self.entry.open(), device=default_device())
        first = self._loss(student.model, held_out)
        lesson = replace(
            lesson,
            note="Distilling …",
            losses=((0, first),),
            text_tokens=rows.numel(),
            teacher_loss=self._loss(teacher_model, held_out),
            texts=texts,
        )
        yield lesson
        for trained in self._train(student.model, teacher_model, rows, held_out, lesson):
            lesson = trained
            yield lesson
        student.model.eval()
        ending = f"Stopped after {SECONDS:.0f} s" if self.stop.is_late else "Stopped"
        if lesson.steps:
            lesson = replace(lesson, texts=(*lesson.texts, self.write(student)))
        yield replace(lesson, note="", ending=ending, is_done=True)

    def _train(
        self,
        student: PreTrainedModel,
        teacher_model: PreTrainedModel,
        rows: Tensor,
        held_out: Tensor,
        lesson: Lesson,
    ) -> Iterator[Lesson]:
        teacher, optimizer = RunningTeacher(teacher_model), _optimizer(student)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _factor)
        order = torch.Generator().manual_seed(0)
        batches: list[Tensor] = []
        step = 0
        while step < STEPS and not self.stop.is_set:
            step += 1
            if not batches:
                batches = list(torch.randperm(len(rows), generator=order).split(BATCH))
            batch = rows[batches.pop()].to(student.device)
            with self.semaphore.slot():
                student.train()
                _step(student, teacher, batch, optimizer)
                schedule.step()
            losses = lesson.losses
            if step % MEASURED_EVERY == 0 or step == STEPS or self.stop.is_set:
                losses = (*losses, (step, self._loss(student, held_out)))
            lesson = replace(
                lesson,
                note=f"Distilling: step {step} of {STEPS} …",
                steps=step,
                tokens=lesson.tokens + batch.numel(),
                losses=losses,
            )
            yield lesson

    def _loss(self, model: PreTrainedModel, held_out: Tensor) -> float:
        """Nats per token, in the mean over text that neither model trained on."""
        model.eval()
        with self.semaphore.slot(), torch.inference_mode():
            ids = held_out.to(model.device)
            labels = ids[:, 1:].flatten()

            def loss_of(hidden: Tensor, head: Tensor) -> Tensor:
                return cross_entropy_loss(hidden[:, :-1].flatten(0, 1), head, labels)

            with head_computes_loss(model, loss_of):
                return float(model(input_ids=ids, use_cache=False).logits)


def _step(
    student: PreTrainedModel, teacher: RunningTeacher, ids: Tensor, optimizer: torch.optim.Optimizer
) -> None:
    """One step towards the teacher's predictions, by the papers' forward KL divergence."""
    output = teacher.predict(ids, torch.arange(len(ids)))
    labels = ids[:, 1:].flatten()

    def loss_of(hidden: Tensor, head: Tensor) -> Tensor:
        return output.loss(hidden[:, :-1].flatten(0, 1), head, labels, DistillLoss())

    with head_computes_loss(student, loss_of):
        loss = student(input_ids=ids, use_cache=False).logits
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _optimizer(student: PreTrainedModel) -> torch.optim.Optimizer:
    """AdamW with `minitron distill`'s settings: weight decay on matrices only."""
    matrices = [weight for weight in student.parameters() if weight.dim() > 1]
    others = [weight for weight in student.parameters() if weight.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)


def _factor(step: int) -> float:
    """Of the learning rate: linear warm-up, then a cosine."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))
