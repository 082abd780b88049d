"""minitron: compress a language model the Minitron way, with the Hugging Face stack alone.

Each verb of the command line is a function here, under the same name and with the same arguments:

    import minitron
    minitron.prune("tiny", "tiny-half", hidden_size=160, intermediate_size=608, corpus="self")

`measure_importance` and `cache_teacher` are second names of `importance` and `teacher_cache`.
`distillation_loss` is the loss of `distill`, for a training loop of your own. All are imported when
they are first used, so that `import minitron` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from minitron.surroundings import check_system as _check_system
from minitron.surroundings import note_untested as _note_untested

if TYPE_CHECKING:
    from minitron.candidates.searching import search as search
    from minitron.cards.model_card import card as card
    from minitron.converting import convert as convert
    from minitron.errors import MinitronError as MinitronError
    from minitron.evaluation import evaluate as evaluate
    from minitron.first_run import quickstart as quickstart
    from minitron.generation import generate as generate
    from minitron.hub.publishing import push as push
    from minitron.inspection import inspect as inspect
    from minitron.pruning import prune as prune
    from minitron.remaking import remake as remake
    from minitron.scores.scoring import measure_importance as measure_importance
    from minitron.space.showing import demo as demo
    from minitron.training.causal_lm import train as train
    from minitron.training.distillation import distillation_loss as distillation_loss
    from minitron.training.distilling import distill as distill
    from minitron.training.teacher_writing import cache_teacher as cache_teacher

    importance, teacher_cache = measure_importance, cache_teacher

_HOMES = {
    "MinitronError": "errors",
    "cache_teacher": "training.teacher_writing",
    "card": "cards.model_card",
    "convert": "converting",
    "demo": "space.showing",
    "distill": "training.distilling",
    "distillation_loss": "training.distillation",
    "evaluate": "evaluation",
    "generate": "generation",
    "importance": "scores.scoring",
    "inspect": "inspection",
    "measure_importance": "scores.scoring",
    "prune": "pruning",
    "push": "hub.publishing",
    "quickstart": "first_run",
    "remake": "remaking",
    "search": "candidates.searching",
    "teacher_cache": "training.teacher_writing",
    "train": "training.causal_lm",
}
# Verbs whose command is a noun, and the name of the function in its module.
_FUNCTIONS = {"importance": "measure_importance", "teacher_cache": "cache_teacher"}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'minitron' has no attribute {name!r}")
    if name != "MinitronError":
        _check_system()
    return getattr(import_module(f"minitron.{_HOMES[name]}"), _FUNCTIONS.get(name, name))


def __dir__() -> list[str]:
    return __all__


_note_untested()
