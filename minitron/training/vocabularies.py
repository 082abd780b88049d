"""Vocabularies: whether each token id is the same token in two models.

shared_rows(open_source("student"), open_source("teacher"))
"""

import torch
from torch import Tensor

from minitron.errors import TokenizerError
from minitron.model.source import Source
from minitron.sources.loading import load_tokenizer

_SHOWN = 3


def shared_rows(student: Source, teacher: Source) -> int:
    """How many first rows of both embeddings are the vocabulary of two models with one tokenizer.

    Embeddings may be padded with rows that no token uses: Qwen2.5 0.5B has 128 fewer than 7B. Rows
    that only one model has are not part of the vocabulary. Raises TokenizerError for different
    tokens, and for different numbers of rows where a tokenizer is missing or has tokens beyond the
    smaller number.
    """
    counts = [source.architecture.vocab_size for source in (student, teacher)]
    have_tokens = all(any(s.companions.tokenizer_files()) for s in (student, teacher))
    tokens = _same_tokens(student, teacher) if have_tokens else {}
    rows, last = min(counts), max(tokens, default=-1)
    if counts[0] == counts[1] or (tokens and last < rows):
        return rows
    raise TokenizerError(
        f"{student.name} predicts {counts[0]:,} token ids, {teacher.name} {counts[1]:,}"
        + (f", and their tokenizer has ids up to {last:,}" if tokens else "")
        + ": distill from the model that the student was made from, or one of its vocabulary"
        + ("" if tokens else "; where both have one tokenizer, put its files into both folders")
    )


def silence_padding(embedding: Tensor, rows: int) -> Tensor:
    """An output embedding whose rows from `rows` on are never the result of greedy decoding.

    Each of these rows becomes the mean of the first `rows`. Its logit is then the mean of theirs,
    which is never above the largest, and its probability is at most 1 / `rows` (Jensen's
    inequality), in practice close to 0.
    """
    padding = embedding.shape[0] - rows
    mean = embedding[:rows].float().mean(0, keepdim=True).to(embedding.dtype)
    return torch.cat([embedding[:rows], mean.expand(padding, -1)])


def _same_tokens(student: Source, teacher: Source) -> dict[int, str]:
    """The tokens of both models, by id. Raises TokenizerError where they differ."""
    ours, theirs = _tokens(student), _tokens(teacher)
    differing = sorted(i for i in {*ours, *theirs} if ours.get(i) != theirs.get(i))
    if differing:
        pairs = [(i, _describe(ours.get(i)), _describe(theirs.get(i))) for i in differing[:_SHOWN]]
        first, our, their = pairs[0]
        listed = f"id {first} is {our} in {student.name}, {their} in {teacher.name}"
        listed += "".join(f"; id {i} {our} and {their}" for i, our, their in pairs[1:])
        raise TokenizerError(
            f"student and teacher differ in {len(differing):,} tokens: {listed}"
            + ("; ...: " if len(differing) > _SHOWN else ": ")
            + "distill from a teacher with the student's tokenizer"
        )
    return ours


def _tokens(source: Source) -> dict[int, str]:
    vocabulary: dict[str, int] = load_tokenizer(source).get_vocab()
    return {number: token for token, number in vocabulary.items()}


def _describe(token: str | None) -> str:
    return "nothing" if token is None else repr(token)
