"""The Hub folder that a training run makes: weights, losses, their picture, record and card.

Knows the order of the steps of a run on text: text, model, fit, folder. Sequences are packed, so
there is no padding.

    train_to_folder(open_source("tiny"), TrainRecipe(init="tiny", out="more", corpus="books.txt"))
"""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed

from minitron.files.dtypes import dtype_named
from minitron.files.shard_file import TensorSpec
from minitron.model.source import Source
from minitron.recipe import FitRecipe, TrainRecipe, record_of
from minitron.records.folder_writer import write_companions, write_weights
from minitron.records.minitron_json import FILE
from minitron.records.model_card import write_card
from minitron.records.record_writer import inherited_from, write_record
from minitron.sources.loading import sequence_length
from minitron.sources.processes import processes_of_run
from minitron.training.fitting import (
    CHECKPOINTS,
    Fitted,
    Texts,
    digest_of,
    fit,
    initial_model,
)
from minitron.training.progress import CURVE, PICTURE, draw_loss_curve, write_records
from minitron.training.shared_run import load_text, shared_folder
from minitron.training.trainers import TextTrainer

_DONE = f"removed-{CHECKPOINTS}"
_TRACKED = "runs"  # TensorBoard's files, which the Hub shows


def train_to_folder(source: Source, recipe: TrainRecipe) -> None:
    """Train the weights of `source` as `recipe` names, and write `recipe.out`.

    An interrupted run goes on from its last checkpoint. Raises CorpusError, OutputError,
    TargetError.
    """
    seq_len = sequence_length(source, recipe.seq_len)
    with shared_folder(Path(recipe.out), recipe) as folder:
        if not is_written(folder):
            _train(source, recipe, folder, seq_len)


def _train(source: Source, recipe: TrainRecipe, folder: Path, seq_len: int) -> None:
    load = partial(load_text, source, seq_len=seq_len, folder=folder, seed=recipe.seed)
    inherited = inherited_from(source)
    held_out = None if recipe.eval_corpus is None else load(recipe.eval_corpus)
    texts = Texts(load(recipe.corpus, samples=recipe.samples), held_out)
    set_seed(recipe.seed)
    model = initial_model(source, recipe)
    fitted = fit(
        model,
        texts,
        folder / CHECKPOINTS,
        recipe,
        make_trainer=TextTrainer,
        models={"initial_model": digest_of(source)},
    )
    write_trained(
        folder,
        source,
        recipe,
        fitted,
        texts,
        command="train",
        loss="cross-entropy",
        inherited=inherited,
    )


def write_trained(
    folder: Path,
    source: Source,
    recipe: FitRecipe,
    fitted: Fitted,
    texts: Texts,
    *,
    command: str,
    loss: str,
    inherited: Mapping[str, Any],
    **found: Any,
) -> None:
    """Write what a run made of `source`, in the first process; the checkpoints are removed.

    `loss` names what was trained on, `inherited` is what `inherited_from` read of the source,
    `found` is recorded beside the training.
    """
    if not processes_of_run().is_main_process:
        return
    architecture = source.architecture
    dtype = dtype_named(recipe.dtype)
    # A projection that only the loss needed stays behind.
    weights = {name: fitted.weights[name].to("cpu", dtype) for name in architecture.shapes()}
    specs = {name: TensorSpec(dtype, tuple(tensor.shape)) for name, tensor in weights.items()}
    write_weights(folder, specs, weights.items())
    write_companions(folder, source, source.config_at(architecture), dtype)
    write_records(folder / CURVE, fitted.records)
    draw_loss_curve(folder / PICTURE, fitted.records, loss)
    write_record(
        folder,
        command,
        record_of(recipe),
        source,
        target=architecture,
        inherited=inherited,
        training={
            "corpus_digest": texts.corpus.digest,
            "corpus_tokens": texts.corpus.tokens,
            "steps": fitted.steps,
            "epochs": fitted.epochs,
            "tokens": fitted.tokens,
        },
        **found,
    )
    write_card(folder)
    # Under another name first: a run that is killed meanwhile does not go on from half of them.
    (folder / CHECKPOINTS).rename(folder / _DONE)
    _remove_checkpoints(folder)


def is_written(folder: Path) -> bool:
    """Whether a run was killed when all was written; what is left of its checkpoints goes."""
    if (folder / CHECKPOINTS).exists() or not (folder / FILE).exists():
        return False
    if processes_of_run().is_main_process:
        _remove_checkpoints(folder)
    return True


def _remove_checkpoints(folder: Path) -> None:
    if (folder / _DONE / _TRACKED).exists():
        (folder / _DONE / _TRACKED).rename(folder / _TRACKED)
    if (folder / _DONE).exists():
        shutil.rmtree(folder / _DONE)
