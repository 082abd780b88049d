"""The options of `minitron quickstart`, `inspect`, `generate` and `demo`."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

from minitron.options import bounded, check_unset
from minitron.recipe import Recipe

Quantization = Literal["int8", "int4"]


@dataclass(frozen=True)
class QuickstartRecipe(Recipe):
    """Prune, distill and compare the embedded teacher: minutes on two cores, no network.

    Examples:
        minitron quickstart
        minitron quickstart my-first-student --seed 1
    """

    out: str = "first-student"
    """The folder to write, ready for the Hub."""
    _: KW_ONLY
    seed: int = bounded(0, at_least=0)
    """Seed of everything drawn at random."""


@dataclass(frozen=True)
class InspectRecipe(Recipe):
    """Print a model's sizes, parameters, bytes and layout. Reads no weights.

    Examples:
        minitron inspect tiny
        minitron inspect nvidia/Minitron-8B-Base --json
    """

    FLAGS: ClassVar = ("--json",)

    source: str
    """The model: a folder, a Hub id or a name of the zoo."""


@dataclass(frozen=True)
class GenerateRecipe(Recipe):
    """Continue a prompt, and print the text while it is generated.

    Examples:
        minitron generate tiny "It was the best of times,"
        minitron generate tiny "Call me" --temperature 0.8 --seed 3
    """

    source: str
    """The model: a folder, a Hub id or a name of the zoo."""
    prompt: str
    """The text to continue."""
    _: KW_ONLY
    max_new_tokens: int = bounded(128, at_least=1)
    """Tokens to generate at most."""
    temperature: float = bounded(0.0, at_least=0)
    """0 takes the most probable token; higher values sample more freely."""
    top_p: float = bounded(1.0, above=0, at_most=1)
    """Sample only from the most probable tokens that together reach this probability."""
    seed: int = bounded(0, at_least=0)
    """Seed of sampling."""
    quantize: Quantization | None = None
    """Quantize the layers' weights to 8- or 4-bit integers first: less memory, and slightly
    different text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature:
            greedy = "at --temperature 0, which takes the most probable token"
            check_unset(self, ("top_p",), greedy)


@dataclass(frozen=True)
class DemoRecipe(Recipe):
    """Show models in a browser: compare them, prune one, see measured results.

    Examples:
        minitron demo
        minitron demo tiny tiny-half --port 8000
    """

    sources: list[str] | None = None
    """The models: folders, Hub ids or names of the zoo; the whole zoo unless given."""
    _: KW_ONLY
    port: int | None = bounded(None, at_least=1, at_most=65535)
    """The port to serve on; GRADIO_SERVER_PORT, else the first free one from 7860, unless given."""
    open: bool = False
    """Also open the page in a browser."""
