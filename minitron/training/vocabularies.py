"""Vocabularies: whether two models mean the same by the same token id.

check_same_vocabulary(open_source("student"), open_source("teacher"))
"""

from minitron.architecture import Architecture
from minitron.errors import TokenizerError
from minitron.source import Source, load_tokenizer

_SHOWN = 3


def check_same_vocabulary(student: Source, teacher: Source) -> None:
    """Refuse two models with different tokens or differently many, telling the first that differ.

    Tokens are compared where both models have a tokenizer. Raises TokenizerError.
    """
    if any(student.tokenizer_files()) and any(teacher.tokenizer_files()):
        _check_same_tokens(student, teacher)
    sizes = [Architecture.from_config(source.config).vocab_size for source in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise TokenizerError(
            f"{student.name} predicts {sizes[0]:,} token ids, {teacher.name} {sizes[1]:,}: "
            "distill from the model that the student was made from, or one of its vocabulary"
        )


def _check_same_tokens(student: Source, teacher: Source) -> None:
    ours, theirs = _tokens(student), _tokens(teacher)
    differing = sorted(i for i in {*ours, *theirs} if ours.get(i) != theirs.get(i))
    if differing:
        told = "; ".join(
            f"id {i} is {_said(ours.get(i))} in {student.name}, {_said(theirs.get(i))} in "
            f"{teacher.name}"
            for i in differing[:_SHOWN]
        )
        raise TokenizerError(
            f"student and teacher differ in {len(differing):,} tokens: {told}"
            + ("; ...: " if len(differing) > _SHOWN else ": ")
            + "distill from a teacher with the student's tokenizer"
        )


def _tokens(source: Source) -> dict[int, str]:
    vocabulary: dict[str, int] = load_tokenizer(source).get_vocab()
    return {number: token for token, number in vocabulary.items()}


def _said(token: str | None) -> str:
    return "nothing" if token is None else repr(token)
