"""Training of causal language models on text, on transformers' Trainer and accelerate.

Knows the order of the steps: text, model, fit, folder. Sequences are packed, so there is no
padding. Knows nothing of pruning, nor of teachers (`distilling`).

    train(out="tiny", init="config-and-tokenizer", corpus="books.jsonl.gz", scratch=True)
"""

from functools import partial
from pathlib import Path

from transformers import set_seed

from minitron.hub.folder import HubFolder
from minitron.provenance import inherited_from
from minitron.recipe import TrainRecipe, verb
from minitron.source import Source, open_source, sequence_length
from minitron.training.fitting import (
    CHECKPOINTS,
    Texts,
    check_numbers,
    digest_of,
    fit,
    initial_model,
)
from minitron.training.shared_run import load_text, shared_folder
from minitron.training.text_trainer import TextTrainer
from minitron.training.trained_folder import is_written, write_trained
from minitron.unfinished import check_absent


@verb(TrainRecipe)
def train(recipe: TrainRecipe) -> HubFolder:
    """Train a model from scratch or further, by cross-entropy, and write a Hub-ready folder.

    An interrupted run goes on from its last checkpoint when the same call is made again. Under
    torchrun or accelerate launch, all processes train together. Returns the folder, with
    `training.jsonl` (one record a logged step) and, where matplotlib is installed, `loss.png`.
    No logits are held (`cross_entropy`). Raises SourceError, CorpusError, OutputError, TargetError.
    """
    out = Path(recipe.out)
    check_absent(out)
    check_numbers(recipe)
    source = open_source(recipe.init)
    seq_len = sequence_length(source, recipe.seq_len)
    with shared_folder(out, recipe) as folder:
        if not is_written(folder):
            _train(source, recipe, folder, seq_len)
    return HubFolder.at(out)


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
