"""The Hub folder that a training run leaves: weights, losses, their picture, record and card.

write_trained(folder, source, recipe, fitted, texts, command="train", loss="cross-entropy")
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron.files.dtypes import dtype_named
from minitron.files.shard_file import TensorSpec
from minitron.model.source import Source
from minitron.recipe import FitRecipe, record_of
from minitron.records.folder_writer import write_companions, write_weights
from minitron.records.minitron_json import FILE, write_provenance
from minitron.records.model_card import write_card
from minitron.training.fitting import CHECKPOINTS, Fitted, Texts
from minitron.training.loss_curve import PICTURE, draw_loss_curve
from minitron.training.progress import CURVE, write_records
from minitron.training.shared_run import processes_of_run

_DONE = f"removed-{CHECKPOINTS}"
_TRACKED = "runs"  # TensorBoard's files, which the Hub shows


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
    write_provenance(
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
