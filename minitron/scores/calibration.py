"""Calibration: the text that importance is measured on, as a recipe names it.

Loads it, and removes padding. What is measured on it is decided elsewhere.

    calibration(open_source("tiny"), recipe, "cpu").sequences
"""

from dataclasses import dataclass

from transformers import PreTrainedModel

from minitron.errors import CorpusError
from minitron.files.dtypes import dtype_named
from minitron.model.source import Source
from minitron.recipes.importance import CalibrationRecipe
from minitron.sources.loading import load_model, load_tokenizer, sequence_length
from minitron.text.corpus import (
    PAPER_SAMPLES,
    Corpus,
    load_corpus,
    load_ids,
    random_corpus,
)
from minitron.text.encoding import TokenIds
from minitron.text.rows import kind_of_file
from minitron.text.sampling import self_corpus
from minitron.text.text_file import check_regular_file
from minitron.text.texts import MADE_BY_MODEL


@dataclass(frozen=True)
class Calibration:
    """A corpus, its sequences without padding, and the model that sampled it, if one did."""

    corpus: Corpus
    sequences: list[TokenIds]
    model: PreTrainedModel | None = None


def check_text(recipe: CalibrationRecipe) -> None:
    """Refuse a file of text that is missing, before anything is done. Raises CorpusError."""
    if recipe.corpus not in (None, *MADE_BY_MODEL):
        (check_regular_file if recipe.corpus.endswith(".npy") else kind_of_file)(recipe.corpus)


def calibration(source: Source, recipe: CalibrationRecipe, device: str) -> Calibration:
    """The text that `recipe` names. Raises CorpusError where it does not fit the model."""
    assert recipe.corpus is not None
    vocab_size = int(source.config["vocab_size"])
    seq_len, samples = length_and_samples(source, recipe)
    if recipe.corpus == "self":
        dtype = dtype_named(recipe.compute_dtype)
        model = load_model(source, dtype=dtype, device=device)
        corpus = self_corpus(model, seq_len=seq_len, samples=samples, seed=recipe.seed)
        return Calibration(corpus, list(corpus.sequences), model)
    padding = None
    if recipe.corpus == "random":
        corpus = random_corpus(vocab_size, seq_len=seq_len, samples=samples, seed=recipe.seed)
    elif recipe.corpus.endswith(".npy"):
        corpus = load_ids(recipe.corpus, seq_len=seq_len, samples=recipe.samples)
        padding = _padding_id(source)
    else:
        tokenizer = load_tokenizer(source)
        corpus = load_corpus(
            recipe.corpus, tokenizer, seq_len=seq_len, samples=samples, seed=recipe.seed
        )
    corpus.check_fits(vocab_size)
    return Calibration(corpus, unpadded(corpus, padding))


def length_and_samples(source: Source, recipe: CalibrationRecipe) -> tuple[int, int]:
    """Tokens in a sequence, and sequences, before the text is seen."""
    seq_len = sequence_length(source, recipe.seq_len)
    samples = PAPER_SAMPLES if recipe.samples is None else recipe.samples
    return seq_len, samples


def unpadded(corpus: Corpus, padding: int | None) -> list[TokenIds]:
    """The sequences without the padding behind them. Raises CorpusError where nothing is left."""
    if padding is None:
        return list(corpus.sequences)
    is_text = corpus.sequences != padding
    lengths = is_text.shape[1] - is_text[:, ::-1].argmax(1)
    rows = zip(corpus.sequences, lengths, is_text.any(1), strict=True)
    kept = [row[:length] for row, length, has_text in rows if has_text]
    if not kept:
        raise CorpusError(f"{corpus.name} holds nothing but padding (id {padding})")
    return kept


def _padding_id(source: Source) -> int | None:
    """The id that only pads. One that also ends texts is text, and cannot be distinguished."""
    padding = source.config.get("pad_token_id")
    other = [source.config.get(key) for key in ("bos_token_id", "eos_token_id")]
    in_text = {i for ids in other for i in (ids if isinstance(ids, list) else [ids])}
    return padding if isinstance(padding, int) and padding not in in_text else None
