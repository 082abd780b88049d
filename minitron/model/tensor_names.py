"""Tensor names: how a checkpoint may call the tensors of a model, and what we call them.

transformers opens a state dict that was saved from the base model (no `model.` before each name),
one that has that prefix once too often, and a tied model of which only the output embedding was
stored. Source: transformers 5, core_model_loading.rename_source_key and each family's
_tied_weights_keys. Knows names only.

    canonical_names(["embed_tokens.weight", ...], Architecture.from_config(config))
"""

from collections.abc import Iterable

from minitron.errors import SourceError
from minitron.model.architecture import Architecture
from minitron.model.families import DECODER, EMBEDDING, HEAD

_NAMED = 3  # names in a message; the rest are counted


def canonical_names(stored: Iterable[str], architecture: Architecture) -> dict[str, str]:
    """Our name of each tensor to the stored one, in the order of `stored`.

    Names that the family does not know stay as they are. Raises SourceError where two stored names
    are of one tensor.
    """
    known = {*architecture.shapes(), HEAD}
    found: dict[str, str] = {}
    for name in stored:
        canonical = _canonical(name, known)
        if canonical in found:
            raise SourceError(
                f"the weights hold {canonical} twice, as {found[canonical]} and as {name}: "
                "remove one of them"
            )
        found[canonical] = name
    if architecture.tie_word_embeddings and HEAD in found and EMBEDDING not in found:
        return {EMBEDDING if name == HEAD else name: found[name] for name in found}
    return found


def _canonical(name: str, known: set[str]) -> str:
    prefix = f"{DECODER}."
    if name.startswith(prefix) and name.removeprefix(prefix) in known:
        return name.removeprefix(prefix)
    return prefix + name if prefix + name in known else name


def some_of(names: Iterable[str]) -> str:
    """The first names, each of at most 80 characters, and how many more there are."""
    listed = list(names)
    shown = [name if len(name) <= 80 else f"{name[:77]}..." for name in listed[:_NAMED]]
    more = len(listed) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
