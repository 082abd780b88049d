"""Progress of a training run: shown on stderr, training.jsonl, loss.png, and a stop at NaN.

Knows transformers' callbacks. Trainer logs the mean loss of the steps since the last log. Each
checkpoint is preceded by a log, so a resumed run averages over the same steps as an unbroken one.
"""

import json
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from minitron.errors import TargetError
from minitron.files.unfinished import note_failure
from minitron.progress import Progress

CURVE, PICTURE = "training.jsonl", "loss.png"
_LOGGED_KEYS = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")


class TrainingProgress(TrainerCallback):
    """Shows trained tokens and losses, and each evaluation by itself, in the first process."""

    def __init__(self, tokens_per_step: int, verb: str) -> None:
        self._tokens_per_step = tokens_per_step
        self._verb = verb
        self._training: Progress | None = None
        self._evaluation: Progress | None = None
        self._losses: dict[str, str] = {}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Begin at the first step, after the evaluation of the initial model."""
        if self._training is None:
            self._training = Progress(
                self._verb,
                total=state.max_steps * self._tokens_per_step,
                done=state.global_step * self._tokens_per_step,
                unit="token",
                is_shown=state.is_world_process_zero,
            )
            self._training.note(**self._losses)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Advance by one optimizer step."""
        if self._training is not None:
            self._training.advance(self._tokens_per_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the last losses beside it."""
        for key in ("loss", "eval_loss"):
            if logs and key in logs:
                self._losses[key] = f"{logs[key]:.3f}"
        if self._training is not None:
            self._training.note(**self._losses)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Advance an evaluation by one batch."""
        if self._evaluation is None:
            self._evaluation = Progress(
                "evaluate",
                total=len(eval_dataloader),
                unit="step",
                is_shown=state.is_world_process_zero,
            )
        self._evaluation.advance()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End it."""
        if self._evaluation is not None:
            self._evaluation.close()
        self._evaluation = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End the line of the training, which an evaluation may follow."""
        if self._training is not None:
            self._training.close()

    def close(self) -> None:
        """End what is still shown, as after an error."""
        for shown in (self._evaluation, self._training):
            if shown is not None:
                shown.close()


class LossCurve(TrainerCallback):
    """Appends each point to training.jsonl when it is logged, and stops the run at NaN.

    `unfinished` is the folder from which the same command would continue, if there is one.
    """

    def __init__(self, file: Path, unfinished: Path | None = None) -> None:
        self._file = file
        self._unfinished = unfinished

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Drop the points after the checkpoint: the resumed run logs these steps again."""
        if state.is_world_process_zero:
            write_curve(self._file, curve_points(state))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Log before each checkpoint; the last step has one."""
        if state.global_step % state.save_steps == 0 or state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Append the logged point. Raises TargetError for a loss or gradient that is no number."""
        last = state.log_history[-1]
        for key, what in (("loss", "loss"), ("grad_norm", "gradient"), ("eval_loss", "loss")):
            # fp16 gradients overflow until their scale is small enough; such steps are skipped.
            is_checked = key != "grad_norm" or not args.fp16
            if is_checked and not math.isfinite(last.get(key, 0.0)):
                failure, remove = f"the {what} became {last[key]} by step {last['step']}", ""
                if self._unfinished is not None:
                    remove = f"remove {self._unfinished} and "
                    if state.is_world_process_zero:
                        note_failure(self._unfinished, failure)
                raise TargetError(
                    f"{failure}: {remove}begin again "
                    "with a smaller --learning-rate, more --warmup-steps or --autocast float32"
                )
        if state.is_world_process_zero and (point := _point(last)):
            with self._file.open("a", encoding="utf-8") as curve:
                curve.write(json.dumps(point) + "\n")


def curve_points(state: TrainerState) -> tuple[dict[str, float], ...]:
    """One point per logged step: step, epoch, loss or eval_loss, learning_rate, grad_norm."""
    return tuple(point for logged in state.log_history if (point := _point(logged)))


def write_curve(file: Path, points: tuple[dict[str, float], ...]) -> None:
    """Write the loss curve as JSON lines."""
    file.write_text("".join(json.dumps(point) + "\n" for point in points), encoding="utf-8")


def draw_loss_curve(
    path: Path,
    curve: Sequence[dict[str, float]],
    training: str,
    teachers_loss: float | None = None,
) -> bool:
    """Draw the loss curve as a picture; `training` names the training loss, and `teachers_loss` is
    that of the teacher on the held-out text.

    Needs no display. False where matplotlib, of the extra `plots`, is not installed.
    """
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", training, "-"), ("eval_loss", "held-out text", "o-")):
        points = [(point["step"], point[key]) for point in curve if key in point]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    if teachers_loss is not None:
        axes.axhline(teachers_loss, color="0.4", linestyle="--", label="teacher, held-out text")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True


def _point(logged: dict[str, float]) -> dict[str, float]:
    if "loss" not in logged and "eval_loss" not in logged:
        return {}
    return {key: logged[key] for key in _LOGGED_KEYS if math.isfinite(logged.get(key, math.nan))}
