"""Empty weights: models built without memory for their parameters, in one thread.

accelerate's `init_empty_weights` replaces a method of every module of the process. Where two
threads build and load models at once, as for two visitors of the Space, each would empty weights of
the other, and after overlapping blocks the method would stay replaced. The hook here is registered
with torch once, and acts only in threads that are inside the block.

    with empty_weights():
        model = new_model(config)   # parameters on the device "meta", buffers unchanged
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook


class _Thread(threading.local):
    """The state of one thread."""

    empties = False


_thread = _Thread()


@contextmanager
def empty_weights() -> Iterator[None]:
    """Put every parameter that this thread gives a module in this block on the device "meta"."""
    before, _thread.empties = _thread.empties, True
    try:
        yield
    finally:
        _thread.empties = before


def _empty_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
    if not _thread.empties:
        return None
    empty = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    empty.__dict__.update(parameter.__dict__)
    return empty


register_module_parameter_registration_hook(_empty_parameter)  # type: ignore[arg-type]
