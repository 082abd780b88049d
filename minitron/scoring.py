"""Scoring: measures the importance of every axis of a source, by the method a recipe names.

Knows which methods need text and which a loaded model; the formulas are in `activation_scores` and
`weight_scores`.

    measure_importance(source="tiny", out="tiny.safetensors", corpus="books.jsonl.gz")
"""

from pathlib import Path

from transformers import PreTrainedModel

from minitron.activation_scores import activation_scores
from minitron.architecture import Architecture
from minitron.corpus import PAPER_SAMPLES, Corpus, load_corpus, load_ids, random_corpus
from minitron.errors import CorpusError, TargetError
from minitron.importance import Importance
from minitron.recipe import CalibrationRecipe, ImportanceRecipe, verb
from minitron.sampling import self_corpus
from minitron.source import (
    Source,
    complete_tensors,
    default_device,
    load_model,
    load_tokenizer,
    open_source,
    sequence_length,
)
from minitron.unfinished import check_absent
from minitron.weight_scores import magnitude_scores, random_scores


@verb(ImportanceRecipe)
def measure_importance(recipe: ImportanceRecipe) -> Importance:
    """Measure how much every hidden channel, neuron, head and layer matters, and save it.

    Returns the Importance: hidden [hidden], ffn [layers, ffn], heads [layers, heads], layers
    [layers], float64. Raises SourceError, CorpusError, OutputError. Source: arXiv 2407.14679 §2.2.
    """
    out = Path(recipe.out)
    check_absent(out)
    importance = score(open_source(recipe.source), recipe)
    importance.save(out)
    return importance


def score(source: Source, recipe: CalibrationRecipe) -> Importance:
    """The importance of every axis of `source`, by `recipe.scores`."""
    architecture = Architecture.from_config(source.config)
    if recipe.scores == "random":
        return random_scores(architecture, recipe.seed)
    if recipe.scores == "magnitude":
        return magnitude_scores(source)
    check_corpus_named(recipe)
    complete_tensors(source, architecture)
    corpus, model = _calibration(source, recipe)
    return activation_scores(model, corpus)


def check_corpus_named(recipe: CalibrationRecipe) -> None:
    """Refuse to rank by activations without text; CorpusError says what may be given."""
    if recipe.corpus is None and recipe.scores == "paper":
        raise CorpusError(
            "ranking by activations needs --corpus: a text file, a Hub dataset, self or random"
        )


def _calibration(source: Source, recipe: CalibrationRecipe) -> tuple[Corpus, PreTrainedModel]:
    """The corpus that `recipe` names, read before the model is loaded where it can be."""
    assert recipe.corpus is not None
    vocab_size = int(source.config["vocab_size"])
    seq_len = sequence_length(source, recipe.seq_len)
    samples = PAPER_SAMPLES if recipe.samples is None else recipe.samples
    if samples < 1:
        raise TargetError(f"--samples is {samples}: it must be at least 1")
    if recipe.corpus == "self":
        model = load_model(source, device=default_device())
        return self_corpus(model, seq_len=seq_len, samples=samples, seed=recipe.seed), model
    if recipe.corpus == "random":
        corpus = random_corpus(vocab_size, seq_len=seq_len, samples=samples, seed=recipe.seed)
    elif recipe.corpus.endswith(".npy"):
        corpus = load_ids(recipe.corpus, seq_len=seq_len, samples=recipe.samples)
    else:
        tokenizer = load_tokenizer(source)
        corpus = load_corpus(
            recipe.corpus, tokenizer, seq_len=seq_len, samples=samples, seed=recipe.seed
        )
    corpus.check_fits(vocab_size)
    return corpus, load_model(source, device=default_device())
