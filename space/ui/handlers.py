"""Handlers: what surrounds a function that gradio calls: errors shown to the visitor, a GPU.

button.click(show_errors(on_gpu(run)), ...)
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import gradio as gr

from minitron.errors import MinitronError

Handler = Callable[..., Any]
_GPU_SECONDS = 90


def show_errors(run: Handler) -> Handler:
    """`run`, with the message of a MinitronError shown to the visitor."""
    if inspect.isgeneratorfunction(run):

        @functools.wraps(run)
        def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from run(*args, **kwargs)
            except MinitronError as error:
                raise _as_message(error) from error

        return stream

    @functools.wraps(run)
    def answer(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except MinitronError as error:
            raise _as_message(error) from error

    return answer


def on_gpu(run: Handler) -> Handler:
    """`run` with a GPU of ZeroGPU, on a Space that has it."""
    if find_spec("spaces") is None:
        return run
    decorated: Handler = import_module("spaces").GPU(duration=_GPU_SECONDS)(run)
    return decorated


def _as_message(error: MinitronError) -> gr.Error:
    return gr.Error(" ".join(str(error).split()), duration=8, print_exception=False)
