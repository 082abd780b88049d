"""Dtypes and the names that flags, config.json and messages give them: "bfloat16"."""

from typing import overload

import torch


@overload
def dtype_named(name: str) -> torch.dtype: ...
@overload
def dtype_named(name: None) -> None: ...
def dtype_named(name: str | None) -> torch.dtype | None:
    """torch's dtype of that name, with or without "torch."; None for None.

    Raises ValueError for a name that no dtype has.
    """
    if name is None:
        return None
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {name!r}")
    return dtype


def name_of(dtype: torch.dtype | str) -> str:
    """The name of a dtype without "torch."."""
    return str(dtype).removeprefix("torch.")
