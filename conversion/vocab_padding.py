"""How Megatron pads a vocabulary: embedding rows in steps that divide among GPUs.

>>> padded_vocab_size(300, 128, tensor_parallel_size=2)
512
"""

from minitron.errors import TargetError


def padded_vocab_size(
    tokenizer_size: int, multiple: int = 128, tensor_parallel_size: int = 1
) -> int:
    """Rows of the embedding that Megatron makes for a tokenizer of this size."""
    step = multiple * tensor_parallel_size
    return -(-tokenizer_size // step) * step


def vocab_multiple(tokenizer_size: int, rows: int) -> int:
    """A make_vocab_size_divisible_by with which Megatron pads the tokenizer to these rows.

    The power of two that NeMo 2's importer chooses, 128 halved until it divides, where that does;
    else the smallest number that does. Raises TargetError for a tokenizer larger than the rows.
    """
    if not 0 < tokenizer_size <= rows:
        raise TargetError(
            f"the tokenizer has {tokenizer_size} tokens and the embedding {rows} rows: "
            "Megatron only ever adds rows"
        )
    halved = 128
    while rows % halved:
        halved //= 2
    if padded_vocab_size(tokenizer_size, halved) == rows:
        return halved
    padding = rows - tokenizer_size
    return next(step for step in range(padding + 1, rows + 1) if rows % step == 0)
