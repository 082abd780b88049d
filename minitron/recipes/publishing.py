"""The options of `minitron card`, `minitron push` and `minitron remake`."""

from dataclasses import KW_ONLY, dataclass

from minitron.recipe import Recipe


@dataclass(frozen=True)
class CardRecipe(Recipe):
    """Write a folder's model card: sizes removed, training, scores, use, and how to remake it.

    A README.md that was written or changed by hand is kept, unless --overwrite is given.

    Examples:
        minitron card half
        minitron card half --overwrite
    """

    folder: str
    """A folder with a minitron.json: of prune, convert --to hub, train, distill or quickstart."""
    _: KW_ONLY
    overwrite: bool = False
    """Replace a README.md that was written or changed by hand."""


@dataclass(frozen=True)
class PushRecipe(Recipe):
    r"""Upload a model folder to the Hub, in one commit: only one that loads, and no pickles.

    With --space, upload the Space that `minitron demo` shows, with minitron itself, instead.
    If interrupted, the same command sends only the missing files.

    Examples:
        minitron push tiny-half me/tiny-half --private
        minitron push tiny-half me/tiny-half --branch distilled --tag v2
        minitron push 4b nvidia/Minitron-4B-Base --create-pr \
            --commit-message 'Add safetensors'
        minitron push --space me/minitron-demo
        minitron push --space me/minitron-demo nvidia/Minitron-8B-Base me/tiny-half
    """

    folder: str | None = None
    """The folder to upload, or a name of the zoo; with --space the first model to show."""
    repo: str | None = None
    """The model repository: owner/name, or a name of your own account; created if missing."""
    models: list[str] | None = None
    """With --space: the models to show, each a Hub id or a name of the zoo; the whole zoo unless
    given."""
    _: KW_ONLY
    space: str | None = None
    """Upload the Space instead, to this repository, owner/name; created if missing."""
    private: bool = False
    """Create the repository as a private one."""
    create_pr: bool = False
    """Open a pull request instead of committing."""
    branch: str | None = None
    """The branch to commit to, created if missing; main unless given."""
    tag: str | None = None
    """Also tag the commit."""
    commit_message: str | None = None
    """The commit's title; made from minitron.json unless given."""
    collection: str | None = None
    """Also add the model to a collection: its title (created if missing) or its slug."""


@dataclass(frozen=True)
class RemakeRecipe(Recipe):
    """Build the weights of a pruned or converted folder again, from its minitron.json and source.

    As they were cut or converted: the same bytes, without any text. A reconstructed folder is
    fitted again to the same text; the largest difference from the recorded weights is printed.

    Examples:
        minitron remake half half-again
        minitron remake me/minitron-4b minitron-4b
        minitron remake half half-again --source elsewhere/tiny
        minitron remake half-distilled half-again --before-training
    """

    folder: str
    """The folder, or its Hub id; its minitron.json is enough. Of conversions those --to hub have
    one."""
    out: str
    """The folder to write."""
    _: KW_ONLY
    source: str | None = None
    """The model that it was made from, if it has moved; the one in minitron.json unless given."""
    corpus: str | None = None
    """The text that a reconstructed folder was fitted to, if it has moved; the one in minitron.json
    unless given."""
    before_training: bool = False
    """For a trained folder, build the model that its training began with."""
    low_disk: bool = False
    """Read the weights of a Hub id over the network; none is stored on this machine."""
