"""What a training run tells while it runs: a bar on stderr, the loss curve as JSONL, a stop at NaN.

Knows transformers' callbacks. A checkpoint always ends a logged stretch of steps, so that a resumed
run averages its losses over the same steps as an unbroken one.
"""

import json
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from minitron.errors import TargetError

CURVE, PICTURE = "training.jsonl", "loss.png"
_KEPT = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")


class TrainingProgress(TrainerCallback):
    """A bar: tokens done, tokens a second, losses, time left."""

    def __init__(self, tokens_per_step: int, verb: str) -> None:
        self._tokens_per_step = tokens_per_step
        self._verb = verb
        self._bar: tqdm[Any] | None = None
        self._shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Open the bar where an earlier run left it."""
        if state.is_world_process_zero:
            self._bar = tqdm(
                total=state.max_steps * self._tokens_per_step,
                initial=state.global_step * self._tokens_per_step,
                unit="token",
                unit_scale=True,
                desc=self._verb,
                mininterval=1,
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """One optimizer step further."""
        if self._bar is not None:
            self._bar.update(self._tokens_per_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the last losses beside the bar."""
        for key in ("loss", "eval_loss"):
            if logs and key in logs:
                self._shown[key] = f"{logs[key]:.3f}"
        if self._bar is not None:
            self._bar.set_postfix(self._shown, refresh=False)

    def close(self) -> None:
        """Leave the bar on the screen, and what is said next a line of its own."""
        if self._bar is not None:
            self._bar.close()


class LossCurve(TrainerCallback):
    """Writes each record to training.jsonl as it is logged, and refuses to go on after NaN."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """What an earlier run logged after its last checkpoint is logged again."""
        if state.is_world_process_zero:
            write_records(self._file, records_of(state))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Log before each checkpoint, of which there is one at the end."""
        if state.global_step % state.save_steps == 0 or state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Add what was logged. Raises TargetError for a loss or a gradient that is no number."""
        last = state.log_history[-1]
        for key, what in (("loss", "loss"), ("grad_norm", "gradient"), ("eval_loss", "loss")):
            # float16's gradients overflow while their scale is found, and such steps are skipped.
            is_told = key != "grad_norm" or not args.fp16
            if is_told and not math.isfinite(last.get(key, 0.0)):
                raise TargetError(
                    f"the {what} became {last[key]} by step {last['step']}: begin again with a "
                    "smaller --learning-rate, more --warmup-steps or --autocast float32"
                )
        if state.is_world_process_zero and (record := _record(last)):
            with self._file.open("a", encoding="utf-8") as curve:
                curve.write(json.dumps(record) + "\n")


def records_of(state: TrainerState) -> tuple[dict[str, float], ...]:
    """One a logged step: step, epoch, loss or eval_loss, learning_rate, grad_norm."""
    return tuple(record for logged in state.log_history if (record := _record(logged)))


def write_records(file: Path, records: tuple[dict[str, float], ...]) -> None:
    """Write the loss curve as JSON lines."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def draw_loss_curve(path: Path, records: Sequence[dict[str, float]], training: str) -> bool:
    """Draw what was logged; `training` names the loss that was trained on.

    False where matplotlib, which the extra `plots` brings, is not installed.
    """
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure  # an extra

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", training, "-"), ("eval_loss", "held-out text", "o-")):
        points = [(record["step"], record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True


def _record(logged: dict[str, float]) -> dict[str, float]:
    if "loss" not in logged and "eval_loss" not in logged:
        return {}
    return {key: logged[key] for key in _KEPT if math.isfinite(logged.get(key, math.nan))}
