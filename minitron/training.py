"""Training of causal language models, on transformers' Trainer and accelerate.

Knows how a TrainRecipe becomes TrainingArguments, what progress looks like and where an interrupted
run goes on. Sequences are packed, so there is no padding. Knows nothing of pruning.

    train(out="tiny", init="config-and-tokenizer", corpus="books.jsonl.gz", scratch=True)
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from minitron.architecture import Architecture, resized_config
from minitron.corpus import Corpus, load_corpus, load_ids
from minitron.errors import TargetError
from minitron.folder_writer import write_companions, write_model
from minitron.hub_folder import HubFolder
from minitron.model_card import write_card
from minitron.provenance import write_provenance
from minitron.recipe import TrainRecipe, record_of, verb
from minitron.sampling import self_corpus
from minitron.source import (
    Source,
    default_device,
    fast_dtype,
    hub_config,
    load_model,
    load_tokenizer,
    new_model,
    open_source,
    sequence_length,
)
from minitron.unfinished import check_absent, unfinished_folder

SELF_SAMPLES = 256
_LOG_STEPS = 10


@verb(TrainRecipe)
def train(recipe: TrainRecipe) -> HubFolder:
    """Train a model from scratch or further, by cross-entropy, and write a Hub-ready folder.

    An interrupted run goes on from its last checkpoint when the same call is made again. Returns
    the folder, with `training.jsonl` (one record a logged step). Raises SourceError, CorpusError,
    OutputError, TargetError.
    """
    out = Path(recipe.out)
    check_absent(out)
    _check(recipe)
    source = open_source(recipe.init)
    architecture = Architecture.from_config(source.config)
    with unfinished_folder(out, asdict(recipe), resumable=True) as folder:
        corpus, held_out = _corpora(source, recipe)
        set_seed(recipe.seed)
        model = _initial_model(source, recipe)
        checkpoints = folder / "checkpoints"
        fitted = fit(model, corpus, checkpoints, recipe, held_out=held_out)
        dtype = getattr(torch, recipe.dtype)
        every_layer = tuple(range(architecture.num_hidden_layers))
        write_model(folder, model, dtype)
        config = resized_config(source.config, architecture, every_layer)
        write_companions(folder, source, config, dtype)
        write_records(folder, fitted.records)
        write_provenance(
            folder,
            "train",
            record_of(recipe),
            source,
            target=architecture,
            training={
                "corpus_digest": corpus.digest,
                "corpus_tokens": corpus.tokens,
                "steps": fitted.steps,
                "epochs": fitted.epochs,
            },
        )
        write_card(folder)
        shutil.rmtree(checkpoints)
    return HubFolder.at(out)


@dataclass(frozen=True)
class Fitted:
    """What a training run did."""

    steps: int
    epochs: float
    # One a logged step: step, epoch, loss (nats a token) or eval_loss, learning_rate, grad_norm.
    records: tuple[dict[str, float], ...]


def fit(
    model: PreTrainedModel,
    corpus: Corpus,
    folder: Path,
    recipe: TrainRecipe,
    *,
    held_out: Corpus | None = None,
) -> Fitted:
    """Train `model` in place; checkpoints go to `folder`, and an earlier run there is resumed."""
    corpus.check_fits(model.config.vocab_size)
    seq_len = corpus.sequences.shape[1]
    tokens_per_step = recipe.batch_size * recipe.gradient_accumulation_steps * seq_len
    progress = _Progress(tokens_per_step)
    checkpoint = get_last_checkpoint(str(folder)) if folder.exists() else None
    arguments = _arguments(recipe, folder, evaluates=held_out is not None)
    arguments.eval_on_start = held_out is not None and checkpoint is None
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=_dataset(corpus),
        eval_dataset=None if held_out is None else _dataset(held_out),
        data_collator=_stack,
        callbacks=[progress],
    )
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    trainer.train(resume_from_checkpoint=checkpoint)
    evaluated = [record["step"] for record in trainer.state.log_history if "eval_loss" in record]
    if held_out is not None and evaluated[-1:] != [trainer.state.global_step]:
        trainer.evaluate()
    model.eval()
    return _fitted(trainer.state)


def write_records(folder: Path, records: tuple[dict[str, float], ...]) -> None:
    """Write the loss curve as training.jsonl."""
    lines = (json.dumps(record) + "\n" for record in records)
    (folder / "training.jsonl").write_text("".join(lines))


def _check(recipe: TrainRecipe) -> None:
    """Refuse numbers that mean nothing, before anything slow. Raises TargetError."""
    positive = (
        "epochs",
        "batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "save_steps",
    )
    for key in (
        *positive,
        *(key for key in ("steps", "samples", "seq_len") if getattr(recipe, key) is not None),
    ):
        if not getattr(recipe, key) > 0:
            raise TargetError(f"{key} is {getattr(recipe, key)}: it must be above 0")


def _corpora(source: Source, recipe: TrainRecipe) -> tuple[Corpus, Corpus | None]:
    """The text to train on, and the held-out text where there is one."""
    seq_len = sequence_length(source, recipe.seq_len)

    def load(name: str, samples: int | None) -> Corpus:
        if name.endswith(".npy"):
            return load_ids(name, seq_len=seq_len, samples=samples)
        if name == "self":
            model = load_model(source, device=default_device())
            rows = samples or SELF_SAMPLES
            return self_corpus(model, seq_len=seq_len, samples=rows, seed=recipe.seed)
        tokenizer = load_tokenizer(source)
        return load_corpus(name, tokenizer, seq_len=seq_len, samples=samples, seed=recipe.seed)

    held_out = None if recipe.eval_corpus is None else load(recipe.eval_corpus, None)
    return load(recipe.corpus, recipe.samples), held_out


def _initial_model(source: Source, recipe: TrainRecipe) -> PreTrainedModel:
    """The model to train, in float32: with its own weights, or random ones."""
    if recipe.scratch:
        return new_model(hub_config(source.config))
    return load_model(source, dtype=torch.float32)


def _arguments(recipe: TrainRecipe, folder: Path, *, evaluates: bool) -> TrainingArguments:
    device = default_device()
    is_fast = fast_dtype(torch.bfloat16, device) == torch.bfloat16
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs,
        max_steps=recipe.steps or -1,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": recipe.min_learning_rate},
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        adam_beta2=recipe.adam_beta2,
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.autocast == "bfloat16" or (recipe.autocast == "auto" and is_fast),
        use_cpu=device == "cpu",
        save_strategy="steps",
        save_steps=recipe.save_steps,
        save_total_limit=1,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=recipe.save_steps,
        prediction_loss_only=True,
        logging_steps=_LOG_STEPS,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        seed=recipe.seed,
        data_seed=recipe.seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def _dataset(corpus: Corpus) -> Dataset:
    rows = Dataset.from_dict({"input_ids": corpus.sequences})
    return rows.with_format("torch")


def _stack(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    input_ids = torch.stack([row["input_ids"] for row in rows]).long()  # (batch, seq_len)
    return {"input_ids": input_ids, "labels": input_ids}


def _fitted(state: TrainerState) -> Fitted:
    kept = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")
    records = tuple(
        {key: record[key] for key in kept if key in record}
        for record in state.log_history
        if "loss" in record or "eval_loss" in record
    )
    return Fitted(state.global_step, float(state.epoch or 0), records)


class _Progress(TrainerCallback):
    """A bar on stderr: steps done, tokens a second, loss, time left."""

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens_per_step = tokens_per_step
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
                desc="train",
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

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave the finished bar on the screen."""
        if self._bar is not None:
            self._bar.close()
