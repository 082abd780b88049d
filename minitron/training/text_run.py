"""A training run on text: from a source's weights to a folder with the trained ones.

Knows the order of the steps: text, model, fit, folder. Sequences are packed, so there is no
padding. Knows nothing of pruning, nor of teachers.

    train_to_folder(open_source("tiny"), TrainRecipe(init="tiny", out="more", corpus="books.txt"))
"""

from functools import partial
from pathlib import Path

from transformers import set_seed

from minitron.model.source import Source
from minitron.recipe import TrainRecipe
from minitron.records.minitron_json import inherited_from
from minitron.sources.loading import sequence_length
from minitron.training.fitting import CHECKPOINTS, Texts, digest_of, fit, initial_model
from minitron.training.shared_run import load_text, shared_folder
from minitron.training.text_trainer import TextTrainer
from minitron.training.trained_folder import is_written, write_trained


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
