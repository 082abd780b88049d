"""Mistakes: what is wrong with a command line, as one line that says what to write.

Turns what cyclopts raises into sentences of our own, which name the flag, the value and what is
expected. Knows the recipes, and nothing of what they do.

    mistake_of(error, recipes)   # "missing SOURCE: minitron prune SOURCE OUT"
"""

import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from inspect import Parameter, signature

from cyclopts import CoercionError, CycloptsError, MissingArgumentError, UnknownOptionError
from cyclopts.exceptions import (
    RepeatArgumentError,
    UnknownCommandError,
    UnusedCliTokensError,
)

from minitron.options import expected_words, flag_of, longer_name, nearest, sections_of, types_in
from minitron.recipe import Recipe


def usage_of(recipe_type: type[Recipe]) -> str:
    """The command with all that it needs, as `minitron train OUT --init INIT --corpus CORPUS`."""
    words, fields = ["minitron", recipe_type.command()], signature(recipe_type).parameters
    for name in _own_first(recipe_type):
        needed = fields[name].default is Parameter.empty
        if fields[name].kind is Parameter.KEYWORD_ONLY:
            words += [flag_of(name), name.upper()] if needed else []
        else:
            many = "..." if list in types_in(fields[name].annotation) else ""
            words.append(name.upper() if needed else f"[{name.upper()}{many}]")
    return " ".join(words)


def mistake_of(error: CycloptsError, recipes: Sequence[type[Recipe]]) -> str:
    """What is wrong and what to write, in one line."""
    by_name = {recipe.command(): recipe for recipe in recipes}
    recipe = next((by_name[word] for word in error.command_chain or () if word in by_name), None)
    if isinstance(error, UnknownCommandError):
        return _unknown_command(error.unused_tokens or ["?"], list(by_name))
    if recipe is None:
        return str(error)
    if isinstance(error, MissingArgumentError):
        return _missing(error, recipe)
    if isinstance(error, UnknownOptionError):
        return _unknown_option(error, recipe, recipes)
    if isinstance(error, UnusedCliTokensError):
        words = shlex.join(error.unused_tokens or [])
        return f"too many words, {words}: {usage_of(recipe)} (quote a text that has blanks)"
    if isinstance(error, CoercionError) and error.argument is not None:
        return _wrong_value(error, recipe)
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword or error.token.value} is given twice: give it once"
    return str(error)


def _unknown_command(words: Sequence[str], names: Sequence[str]) -> str:
    word = words[0]
    if word == "help" and words[1:] and words[1] in names:
        return f"unknown command help: `minitron {words[1]} --help` is what you mean"
    near = get_close_matches(word, names, 1) or get_close_matches(word, ["--help", "--version"], 1)
    hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(names)}"
    return f"unknown {'option' if word.startswith('-') else 'command'} {word}: {hint}"


def _missing(error: MissingArgumentError, recipe: type[Recipe]) -> str:
    """An argument that is not given, or a flag without its value."""
    assert error.argument is not None
    if error.keyword is not None:
        kind = expected_words(error.argument.hint)
        return f"{error.keyword} has no value: give {'one' if '.' in error.keyword else kind}"
    name = error.argument.field_info.name
    field = signature(recipe).parameters[name]
    is_flag = field.kind is Parameter.KEYWORD_ONLY
    return f"missing {flag_of(name) if is_flag else name.upper()}: {usage_of(recipe)}"


def _unknown_option(
    error: UnknownOptionError, recipe: type[Recipe], recipes: Sequence[type[Recipe]]
) -> str:
    """An option that the command does not have, with the one that it resembles; of a recipe file
    also the commands that have it."""
    is_flag = error.token.source == "cli"
    option = (error.token.keyword or error.token.value).partition("=")[0].strip("[]")
    names = [*_own_first(recipe), *(flag.strip("-") for flag in recipe.FLAGS if is_flag)]
    others = [one.command() for one in recipes if option in _own_first(one)]
    if others and not is_flag:
        meant = " or ".join(others)
        return (
            f"{option} in {error.token.source} is no option of {recipe.command()}, but of {meant}"
        )
    near = nearest(option.partition(".")[0], names)
    shown = "" if near is None else flag_of(near) if is_flag else near
    place = "" if is_flag else f" in {error.token.source}"
    hint = f"did you mean {shown}? " if shown else ""
    return f"unknown option {option}{place}: {hint}`minitron {recipe.command()} --help` lists all"


def _own_first(recipe: type[Recipe]) -> list[str]:
    """Names of fields, the recipe's own before those that it shares with others."""
    return [name for names in sections_of(recipe).values() for name in names]


def _wrong_value(error: CoercionError, recipe: type[Recipe]) -> str:
    """A value of the wrong kind: flag, value, what is expected, and the flag that was meant."""
    argument, token = error.argument, error.token
    assert argument is not None
    field = argument.field_info.name
    if token is None:
        return f"{flag_of(field)} must be {expected_words(argument.hint)}"
    from_file = token.source not in ("", "cli")
    name = field if from_file else token.keyword or field.upper()
    place = f" in {token.source}" if from_file else ""
    meant = longer_name(field, token.value, signature(recipe).parameters)
    hint = f"; did you mean {meant if from_file else flag_of(meant)}?" if meant else ""
    kind = expected_words(argument.hint)
    return f"{name} is {token.value or 'empty'}{place}: it must be {kind}{hint}"
