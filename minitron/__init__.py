"""minitron: compress a language model the Minitron way, with the Hugging Face stack alone.

Each verb of the command line is a function here, under the same name and with the same arguments:

    import minitron
    minitron.prune("tiny", "tiny-half", hidden_size=160, intermediate_size=608, corpus="self")

`measure_importance` and `cache_teacher` are second names of `importance` and `teacher_cache`.
`distillation_loss` is the loss of `distill`, for a training loop of your own. All are imported when
they are first used, so that `import minitron` is quick.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

from minitron.surroundings import check_system as _check_system
from minitron.surroundings import note_untested as _note_untested

if TYPE_CHECKING:
    __version__: str
    from minitron.errors import MinitronError as MinitronError
    from minitron.training.distillation import distillation_loss as distillation_loss
    from minitron.verbs.card import card as card
    from minitron.verbs.convert import convert as convert
    from minitron.verbs.demo import demo as demo
    from minitron.verbs.distill import distill as distill
    from minitron.verbs.evaluate import evaluate as evaluate
    from minitron.verbs.generate import generate as generate
    from minitron.verbs.importance import measure_importance as importance  # noqa: F401
    from minitron.verbs.importance import measure_importance as measure_importance
    from minitron.verbs.inspect import inspect as inspect
    from minitron.verbs.prune import prune as prune
    from minitron.verbs.push import push as push
    from minitron.verbs.quickstart import quickstart as quickstart
    from minitron.verbs.remake import remake as remake
    from minitron.verbs.search import search as search
    from minitron.verbs.teacher_cache import cache_teacher as cache_teacher
    from minitron.verbs.teacher_cache import cache_teacher as teacher_cache  # noqa: F401
    from minitron.verbs.train import train as train

_VERBS = sorted(path.stem for path in (_Path(__file__).parent / "verbs").glob("[a-z]*.py"))
# Where each public name is defined: a verb in the module of its name. Two commands are nouns; their
# functions are verbs.
_HOMES = {
    **{verb: (f"verbs.{verb}", verb) for verb in _VERBS},
    "MinitronError": ("errors", "MinitronError"),
    "cache_teacher": ("verbs.teacher_cache", "cache_teacher"),
    "distillation_loss": ("training.distillation", "distillation_loss"),
    "importance": ("verbs.importance", "measure_importance"),
    "measure_importance": ("verbs.importance", "measure_importance"),
    "teacher_cache": ("verbs.teacher_cache", "cache_teacher"),
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version("minitron")
    if name not in _HOMES:
        raise AttributeError(f"module 'minitron' has no attribute {name!r}")
    if name != "MinitronError":
        _check_system()
    module, function = _HOMES[name]
    return getattr(_import_module(f"minitron.{module}"), function)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


_note_untested()
