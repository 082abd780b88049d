"""`minitron demo`: the Space on this machine.

demo(["tiny", "my-students/half"])
"""

import os
import socket
from importlib.util import find_spec

from minitron.errors import MissingExtraError, OutputError
from minitron.recipe import verb
from minitron.recipes.first_steps import DemoRecipe


@verb(DemoRecipe)
def demo(recipe: DemoRecipe) -> None:
    """Show models in a browser, side by side and to be pruned, until interrupted.

    The first, largest one is the others' teacher. Raises MissingExtraError without gradio,
    SourceError for a model that cannot be read, TargetError for a port that is none, OutputError
    for one that another program uses.
    """
    if find_spec("gradio") is None:
        raise MissingExtraError("gradio", "space")
    _check_free(recipe.port)
    from minitron.space.jobs.catalog import Catalog  # it and what follows import torch and gradio
    from minitron.space.page import serve

    catalog = Catalog.of(recipe.sources) if recipe.sources else Catalog.read()
    serve(catalog, server_port=recipe.port, inbrowser=recipe.open)


def _check_free(port: int | None) -> None:
    """Refuse a port that another program uses; where none is named, gradio finds a free one."""
    named = port if port is not None else os.environ.get("GRADIO_SERVER_PORT")
    if named is None or not str(named).isdecimal():
        return
    with socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one closed just now is free
        try:
            ours.bind((os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), int(named)))
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(
                f"port {named} cannot be used ({reason}): choose another --port, or leave it out"
            ) from error


def command(recipe: DemoRecipe) -> None:
    """What the command line runs; the page's address is printed by what serves it."""
    demo(**vars(recipe))
