"""Recipe: one dataclass for each command. Its fields are the flags, the YAML keys and the record.

A field is written once, in `minitron.recipes`, with its help and its bounds beside it: the command
line derives its flags, a recipe file its keys, the Python verb its arguments, and `minitron.json`
what was done. A name in capitals is the title of the section of `--help` that the fields below it
are in. A recipe's docstring is its command's help, with its examples. Imports no torch, so that
`--help` answers at once.

    PruneRecipe(source="tiny", out="tiny-half", hidden_size=192, corpus="self")
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from typing import Any, ClassVar, Literal, ParamSpec, TypeVar

from minitron.errors import readable_system_errors
from minitron.options import check_bounds, check_types, help_of, nearest

Options = ParamSpec("Options")
RecipeT = TypeVar("RecipeT")
Result = TypeVar("Result")

DType = Literal["float32", "bfloat16", "float16"]
OUTPUT = "Output"  # the title of the last section

# How the source is read and where the result is written: neither changes the result.
_NOT_RECORDED = ("out", "push_to_hub", "private", "low_disk", "dry_run")


def verb(
    recipe_type: Callable[Options, RecipeT],
) -> Callable[[Callable[[RecipeT], Result]], Callable[Options, Result]]:
    """Turn a function of a recipe into a public verb that takes the recipe's fields.

    Its docstring is followed by the help of each field.
    """
    assert isinstance(recipe_type, type)
    signature, help = inspect.signature(recipe_type), help_of(recipe_type)

    def decorate(run: Callable[[RecipeT], Result]) -> Callable[Options, Result]:
        @wraps(run)
        def public(*args: Options.args, **kwargs: Options.kwargs) -> Result:
            _check_arguments(run.__name__, signature, args, kwargs)
            with readable_system_errors():
                return run(recipe_type(*args, **kwargs))

        result = inspect.signature(run).return_annotation
        public.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
        arguments = "\n".join(f"    {name}: {help[name]}" for name in signature.parameters)
        public.__doc__ = f"{inspect.cleandoc(run.__doc__ or '')}\n\nArguments:\n{arguments}\n"
        return public

    return decorate


def _check_arguments(
    verb: str, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Raise TypeError, in the verb's name, for arguments that it does not have."""
    for name in kwargs:
        if name not in signature.parameters:
            near = nearest(name, list(signature.parameters))
            hint = "" if near is None else f": did you mean {near}?"
            raise TypeError(f"{verb}() has no argument {name}{hint}")
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{verb}(): {error}") from None


def record_of(recipe: Any) -> dict[str, Any]:
    """A recipe's fields, but for its destination: equal records make equal results."""
    return {key: value for key, value in asdict(recipe).items() if key not in _NOT_RECORDED}


@dataclass(frozen=True)
class Recipe:
    """The options of a command.

    Raises TargetError for values of a wrong type, for numbers out of their bounds and for options
    that exclude each other.
    """

    FLAGS: ClassVar[tuple[str, ...]] = ()  # of the command line only: --json, --recipe

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self)

    @classmethod
    def command(cls) -> str:
        """The name of its command: `teacher-cache` of TeacherCacheRecipe."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__.removesuffix("Recipe")).lower()
