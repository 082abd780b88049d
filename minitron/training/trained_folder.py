"""The Hub folder that a training run makes: weights, losses, their picture, record and card.

Knows the order of the steps of a run on text: text, model, fit, folder. Sequences are packed, so
there is no padding. The processes of a run share its folder and its text; a single process is a run
too.

    recipe = TrainRecipe(init="tiny", out="more", corpus="books.txt")
    train_to_folder(open_source("tiny"), recipe, Path("more.partial"))
    with run_folder(out, recipe, reached=last_step) as folder:
        corpus = load_text(source, "books.jsonl.gz", seq_len=512, folder=folder)
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from minitron.files.atomic_file import atomic_file
from minitron.files.dtypes import dtype_named
from minitron.files.safetensors_file import TensorSpec
from minitron.files.unfinished import Reached
from minitron.model.source import Source
from minitron.printing import first_use, print_next
from minitron.recipe import record_of
from minitron.recipes.training import DistillRecipe, FitRecipe, TrainRecipe
from minitron.records.folder_writer import write_companions, write_weights
from minitron.records.minitron_json import FILE
from minitron.records.model_card import write_card
from minitron.records.record_writer import inherited_from, write_record
from minitron.sources.hub_folder import HubFolder
from minitron.sources.loading import load_model, load_tokenizer, sequence_length
from minitron.sources.processes import (
    device_of_run,
    is_first_process,
    processes_of_run,
    shared_folder,
)
from minitron.text.corpus import Corpus, load_corpus, load_ids
from minitron.text.sampling import self_corpus
from minitron.training.fitting import (
    CHECKPOINTS,
    FitResult,
    Texts,
    digest_of,
    fit,
    initial_model,
    last_step,
)
from minitron.training.progress import CURVE, PICTURE, draw_loss_curve, write_curve
from minitron.training.trainers import TextTrainer

_REMOVED = f"removed-{CHECKPOINTS}"
_TENSORBOARD = "runs"  # its files, which the Hub shows


def train_to_folder(source: Source, recipe: TrainRecipe, unfinished: Path | None) -> None:
    """Train the weights of `source` on text by `recipe`, and write `recipe.out`.

    An interrupted run continues from its last checkpoint; `unfinished` is the folder to remove for
    another start. Raises CorpusError, OutputError, TargetError.
    """
    seq_len = sequence_length(source, recipe.seq_len)
    with run_folder(Path(recipe.out), recipe, reached=last_step) as folder:
        if not is_complete(folder):
            _train(source, recipe, folder, seq_len, unfinished)


def _train(
    source: Source, recipe: TrainRecipe, folder: Path, seq_len: int, unfinished: Path | None
) -> None:
    load = partial(load_text, source, seq_len=seq_len, folder=folder, seed=recipe.seed)
    inherited = inherited_from(source)
    held_out = None if recipe.eval_corpus is None else load(recipe.eval_corpus)
    texts = Texts(load(recipe.corpus, samples=recipe.samples), held_out)
    set_seed(recipe.seed)
    model = initial_model(source, recipe)
    result = fit(
        model,
        texts,
        folder / CHECKPOINTS,
        recipe,
        make_trainer=TextTrainer,
        models={"initial_model": digest_of(source)},
        unfinished=unfinished,
    )
    write_trained(
        folder,
        source,
        recipe,
        result,
        texts,
        command="train",
        loss="cross-entropy",
        inherited=inherited,
    )


def write_trained(
    folder: Path,
    source: Source,
    recipe: FitRecipe,
    result: FitResult,
    texts: Texts,
    *,
    command: str,
    loss: str,
    inherited: Mapping[str, Any],
    **recorded: Any,
) -> None:
    """Write the trained model in the first process, and remove the checkpoints.

    `loss` names the training loss in the picture of the curve, `inherited` comes from
    `inherited_from(source)`, and `recorded` are further entries of minitron.json.
    """
    if not processes_of_run().is_main_process:
        return
    architecture = source.architecture
    dtype = dtype_named(recipe.dtype)
    # Leaves out the projection of the inner states, which only the loss needs.
    weights = {name: result.weights[name].to("cpu", dtype) for name in architecture.shapes()}
    specs = {name: TensorSpec(dtype, tuple(tensor.shape)) for name, tensor in weights.items()}
    write_weights(folder, specs, weights.items())
    write_companions(folder, source, source.config_at(architecture), dtype)
    write_curve(folder / CURVE, result.curve)
    teachers = recorded.get("teacher", {}).get("held_out_loss")
    draw_loss_curve(folder / PICTURE, result.curve, loss, teachers)
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
            "steps": result.steps,
            "epochs": result.epochs,
            "tokens": result.tokens,
            **_held_out_seq_len(texts),
        },
        **recorded,
    )
    write_card(folder)
    # Renamed first, so that a run killed while it removes them does not resume from some of them.
    (folder / CHECKPOINTS).rename(folder / _REMOVED)
    _remove_checkpoints(folder)


def _held_out_seq_len(texts: Texts) -> dict[str, int]:
    """The length of the windows that the losses on held-out text are of."""
    if texts.held_out is None:
        return {}
    return {"held_out_seq_len": texts.held_out.sequences.shape[1]}


def is_complete(folder: Path) -> bool:
    """Whether an earlier run wrote everything; removes what it left of its checkpoints."""
    if (folder / CHECKPOINTS).exists() or not (folder / FILE).exists():
        return False
    if processes_of_run().is_main_process:
        _remove_checkpoints(folder)
    return True


def _remove_checkpoints(folder: Path) -> None:
    if (folder / _REMOVED / _TENSORBOARD).exists():
        (folder / _REMOVED / _TENSORBOARD).rename(folder / _TENSORBOARD)
    if (folder / _REMOVED).exists():
        shutil.rmtree(folder / _REMOVED)


SELF_SAMPLES = 256
_SAMPLES_FILE = "self.npy"


@contextmanager
def run_folder(out: Path, recipe: Any, *, reached: Reached) -> Iterator[Path]:
    """The unfinished folder of a resumable run, without the text that was sampled for it."""
    with shared_folder(out, asdict(recipe), reached=reached) as folder:
        yield folder
        if is_first_process():
            (folder / _SAMPLES_FILE).unlink(missing_ok=True)


def load_text(
    source: Source,
    name: str,
    *,
    seq_len: int,
    folder: Path,
    samples: int | None = None,
    seed: int = 0,
) -> Corpus:
    """The text `name`, tokenized for `source`; `self` is sampled from it. Raises CorpusError."""
    if name.endswith(".npy"):
        return load_ids(name, seq_len=seq_len, samples=samples)
    if name == "self":
        return _load_samples(source, folder / _SAMPLES_FILE, seq_len, samples or SELF_SAMPLES, seed)
    return load_corpus(name, load_tokenizer(source), seq_len=seq_len, samples=samples, seed=seed)


def _load_samples(source: Source, file: Path, seq_len: int, samples: int, seed: int) -> Corpus:
    """Text sampled from the model, kept in `file` for other processes and a resumed run."""
    processes = processes_of_run()
    if processes.is_main_process and not file.exists():
        model = load_model(source, device=device_of_run())
        corpus = self_corpus(model, seq_len=seq_len, samples=samples, seed=seed)
        with atomic_file(file) as partial:
            np.save(partial, corpus.sequences)
    processes.wait_for_everyone()
    return Corpus(load_ids(str(file), seq_len=seq_len).sequences, "self")


def print_trained(recipe: TrainRecipe | DistillRecipe) -> None:
    """Print where the model is and what to do with it, in one process, however many wrote."""
    if not processes_of_run().is_main_process:
        return
    print(f"{recipe.out}: written")
    has_tokenizer = bool(HubFolder.at(Path(recipe.out)).companions.tokenizer_names)
    measured = ["minitron", "evaluate", recipe.out, "--corpus", str(recipe.eval_corpus)]
    print_next(
        first_use(recipe.out, has_tokenizer=has_tokenizer),
        *([measured] if recipe.eval_corpus is not None else []),
    )
