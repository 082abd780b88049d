"""Search texts: the text that importance is measured on, and the held-out text of candidates.

Held-out text is named, or it is the last part of the calibration text, on which importance is then
not measured. Knows how they are stored for a search that resumes; measures nothing.

    texts = search_texts(source, recipe, folder)
    texts.held_out
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minitron.errors import CorpusError
from minitron.files.atomic_file import atomic_file
from minitron.model.source import Source
from minitron.recipes.pruning import BudgetRecipe
from minitron.scores.calibration import calibration
from minitron.scores.measuring import check_corpus_named
from minitron.sources.loading import default_device, load_tokenizer, sequence_length
from minitron.text.corpus import Corpus, HeldOut, held_out_ids, held_out_text, load_ids
from minitron.text.encoding import TokenIds

TEXTS = ("calibration.npy", "held-out.npy")
_MOST_HELD_OUT = 4  # a fourth of the calibration text


class TooShortError(CorpusError):
    """The calibration text cannot spare a part to compare candidates on."""


@dataclass(frozen=True)
class SearchTexts:
    """The texts of a search."""

    held_out: HeldOut
    description: str  # of the held-out text
    calibration: Path | None  # its ids, where they are stored
    is_part: bool = False  # of the calibration text, of which the held-out text is the rest


def search_texts(source: Source, recipe: BudgetRecipe, folder: Path) -> SearchTexts:
    """Read the texts that a recipe names; parts of one are kept in `folder`.

    Raises CorpusError for text that is missing, too short or not of the model's vocabulary.
    """
    if recipe.importance is None:
        check_corpus_named(recipe)
    if recipe.held_out is not None:
        return _named_texts(source, recipe, recipe.held_out, folder)
    if recipe.corpus is None:
        raise CorpusError("candidates are compared on text: name --held-out")
    return _split_texts(source, recipe, folder)


def _named_texts(source: Source, recipe: BudgetRecipe, name: str, folder: Path) -> SearchTexts:
    seq_len = sequence_length(source, recipe.seq_len)
    if name.endswith(".npy"):
        held_out = held_out_ids(name, seq_len)
    else:
        held_out = held_out_text(name, load_tokenizer(source), seq_len)
    held_out = first_tokens(held_out, recipe.eval_tokens)
    for ids in held_out.inputs:
        Corpus(ids, name).check_fits(int(source.config["vocab_size"]))
    kept = None
    if recipe.is_reconstructed:  # it is measured on and fitted on: read or sampled once for both
        kept = folder / TEXTS[0]
        if not kept.exists():
            ids = calibration(source, recipe, default_device()).corpus.sequences
            _save([(kept, ids)])
    return SearchTexts(held_out, f"{_tokens(held_out):,} tokens of {Path(name).name}", kept)


def _split_texts(source: Source, recipe: BudgetRecipe, folder: Path) -> SearchTexts:
    """The calibration text in two: to measure on, and the last part to predict."""
    measured_on, held = (folder / name for name in TEXTS)
    seq_len = sequence_length(source, recipe.seq_len)
    if not (measured_on.exists() and held.exists()):
        ids = calibration(source, recipe, default_device()).corpus.sequences
        wanted = -(-recipe.eval_tokens // max(1, ids.shape[1] - 1))
        last = min(wanted, max(1, len(ids) // _MOST_HELD_OUT))
        if len(ids) < 2 or ids.shape[1] < 2:
            raise TooShortError(
                f"{recipe.corpus} holds {len(ids)} sequences of {ids.shape[1]} tokens, too few to "
                "hold out any: give more text, or name --held-out"
            )
        _save([(held, ids[-last:]), (measured_on, ids[:-last])])
    rows = load_ids(str(held), seq_len=seq_len).sequences
    held_out = first_tokens(held_out_ids(str(held), seq_len), recipe.eval_tokens)
    uses = ["importance is not measured"] if recipe.importance is None else []
    uses += ["candidates are not reconstructed"] if recipe.is_reconstructed else []
    description = (
        f"{_tokens(held_out):,} tokens of the last {len(rows)} sequences of {recipe.corpus}, on "
        f"which {' and '.join(uses)}"
    )
    return SearchTexts(held_out, description, measured_on, is_part=True)


def first_tokens(held_out: HeldOut, tokens: int) -> HeldOut:
    """No more than its first `tokens`, in whole windows but for the last."""
    inputs: list[TokenIds] = []
    targets: list[TokenIds] = []
    left = tokens
    for ids, wanted in zip(held_out.inputs, held_out.targets, strict=True):
        rows = left // ids.shape[1]
        cuts = [np.s_[:rows, :], np.s_[rows : rows + 1, : left - rows * ids.shape[1]]]
        for cut in cuts:
            if left > 0 and ids[cut].size:
                inputs.append(ids[cut])
                targets.append(wanted[cut])
                left -= ids[cut].size
    is_cut = sum(ids.size for ids in inputs) < sum(ids.size for ids in held_out.inputs)
    return HeldOut(tuple(inputs), tuple(targets), None if is_cut else held_out.bytes)


def _tokens(held_out: HeldOut) -> int:
    return sum(int((targets >= 0).sum()) for targets in held_out.targets)


def _save(parts: Iterable[tuple[Path, TokenIds]]) -> None:
    """Write ids so that a file that is there is whole."""
    for path, ids in parts:
        with atomic_file(path) as partial:
            np.save(partial, ids)
