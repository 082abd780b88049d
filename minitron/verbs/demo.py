"""`minitron demo`: the Space on this machine.

demo(["tiny", "my-students/half"])
"""

from importlib.util import find_spec

from minitron.errors import MissingExtraError
from minitron.recipe import DemoRecipe, verb


@verb(DemoRecipe)
def demo(recipe: DemoRecipe) -> None:
    """Show models in a browser, side by side and to be pruned, until interrupted.

    The first, largest one is the others' teacher. Raises MissingExtraError without gradio,
    SourceError for a model that cannot be read, TargetError for a port that is none.
    """
    if find_spec("gradio") is None:
        raise MissingExtraError("gradio", "space")
    from minitron.space.jobs.catalog import Catalog  # it and what follows import torch and gradio
    from minitron.space.page import serve

    catalog = Catalog.of(recipe.sources) if recipe.sources else Catalog.read()
    serve(catalog, server_port=recipe.port, inbrowser=recipe.open)


def command(recipe: DemoRecipe) -> None:
    """What the command line runs; the page's address is printed by what serves it."""
    demo(**vars(recipe))
