"""`minitron card`: write the model card of a folder again, with a picture of what was kept.

card("tiny-half")
"""

from pathlib import Path

from minitron.errors import OutputError, SourceError
from minitron.recipe import verb
from minitron.recipes.publishing import CardRecipe
from minitron.records.card_page import read_page
from minitron.records.model_card import README, checked_record, write_card
from minitron.sources.opening import zoo


@verb(CardRecipe)
def card(recipe: CardRecipe) -> Path:
    """Write the model card of a folder that Minitron made, and return its path.

    It shows what was removed (a table and, where matplotlib is installed, a picture), how it was
    trained, what it scores, how to load it and how to make it again, and takes over what its
    metadata already say. Raises SourceError for a folder without a readable minitron.json or
    config.json, OutputError where README.md was written or changed by hand and `overwrite` is not
    given.
    """
    folder = Path(recipe.folder)
    if recipe.folder in zoo() and not folder.exists():
        raise SourceError(
            f"{folder} is an embedded model, which is not written to: name a folder that minitron "
            "wrote"
        )
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder: name one that minitron wrote")
    checked_record(folder)
    path = folder / README
    if path.exists() and not recipe.overwrite and not read_page(path).text_is_unchanged:
        raise OutputError(
            f"{path} was written or changed by hand: --overwrite replaces it, or rename it first"
        )
    write_card(folder, overwrite=recipe.overwrite)
    return path


def command(recipe: CardRecipe) -> None:
    """What the command line runs and prints."""
    print(f"{card(**vars(recipe))}: written")
