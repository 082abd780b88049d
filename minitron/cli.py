"""The command line: `minitron VERB ...`, made from the recipes.

A verb's flags are its recipe's fields, its help the recipe's docstring, and `command` of its module
does the work and prints. Those modules are imported when they run, so that `--help` answers at
once. A user's mistake is one line on stderr and exit code 2.
"""

import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from inspect import Signature, cleandoc, signature
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter, Token
from cyclopts.help import ColumnSpec, DefaultFormatter, HelpEntry, NameRenderer
from cyclopts.help.specs import get_default_parameter_columns

from minitron.credentials import masked_logs, masked_traceback
from minitron.errors import MinitronError, one_line, readable_system_errors, visible
from minitron.mistakes import mistake_of, usage_of
from minitron.options import help_of, sections_of
from minitron.recipe import OUTPUT, Recipe
from minitron.recipe_file import read_recipe_file
from minitron.recipes import COMMANDS
from minitron.surroundings import check_system


def _columns(console: Any, options: Any, entries: list[HelpEntry]) -> tuple[ColumnSpec, ...]:
    """The columns of a section of `--help`: flags break between words, never inside one."""
    *before, names, texts = get_default_parameter_columns(console, options, entries)
    words = (str(NameRenderer()(entry)).split() for entry in entries)
    # Further words of an entry are indented by two.
    longest = max(len(word) + 2 * (at > 0) for each in words for at, word in enumerate(each))
    width = max(longest, names.max_width or 0)
    return (*before, names.copy(renderer=NameRenderer(width), max_width=width), texts)


FORMAT = DefaultFormatter(column_specs=_columns)
# The section of what is given by its place.
ARGUMENTS = Group("Arguments", sort_key=0, help_formatter=FORMAT)
OTHERS = "Options"  # the title of a section without one
_FLAGS: dict[str, tuple[str, Any, Any, str]] = {  # the argument, its type, default and help
    "--json": ("as_json", bool, False, "Print one JSON object."),
    "--recipe": (
        "recipe_file",
        Path | None,
        None,
        "A YAML file of these options, or the name of a published one, such as "
        "minitron-8b-prune; flags override it.",
    ),
}
CLOSED_PIPE = 141  # the exit code of a program that SIGPIPE ends


def _app() -> App:
    """The application, with a command for each recipe."""
    made = App(
        name="minitron",
        help="Compress language models the Minitron way: measure what matters, prune, retrain, "
        "share.",
        help_epilogue="`minitron COMMAND --help` shows the options of a command, and examples.",
        help_format="plaintext",
        version_flags=["--version"],
        suppress_keyboard_interrupt=False,
        group_arguments=ARGUMENTS,
        group_commands=Group("Help", sort_key=len(COMMANDS)),
    )
    for place, (title, recipes) in enumerate(COMMANDS.items()):
        group = Group(title, sort_key=place)
        for order, recipe_type in enumerate(recipes):
            help, examples = _help_and_examples(recipe_type)
            made.command(
                _command(recipe_type),
                name=recipe_type.command(),
                group=group,
                sort_key=order,
                usage=f"Usage: {usage_of(recipe_type)} [OPTIONS]",
                help=help,
                help_epilogue=examples,
            )
    return made


def _help_and_examples(recipe_type: type[Recipe]) -> tuple[str, str]:
    """A docstring's paragraphs, each on a line, and its examples as they are written."""
    prose, _, examples = cleandoc(recipe_type.__doc__ or "").partition("Examples:\n")
    paragraphs = (" ".join(paragraph.split()) for paragraph in prose.strip().split("\n\n"))
    return "\n\n".join(paragraphs), "Examples:\n" + re.sub("^  ", "", examples, flags=re.MULTILINE)


def _command(recipe_type: type[Recipe]) -> Callable[..., None]:
    """The function of a command: it takes the fields of the recipe, and its flags."""

    def command(*args: Any, **kwargs: Any) -> None:
        check_system()
        kwargs.pop("recipe_file", None)  # read into the other options already
        as_json = {"as_json": kwargs.pop("as_json", False)} if "--json" in recipe_type.FLAGS else {}
        module = import_module(f"minitron.verbs.{recipe_type.command().replace('-', '_')}")
        module.command(recipe_type(*args, **kwargs), **as_json)

    fields, output = _fields(recipe_type)
    own = [_flag(flag, output) for flag in recipe_type.FLAGS]
    command.__signature__ = Signature([*fields, *own])  # type: ignore[attr-defined]
    return command


def _fields(recipe_type: type[Recipe]) -> tuple[list[inspect.Parameter], Group]:
    """The recipe's fields as parameters, each with its help and section; and the last section."""
    help, sections = help_of(recipe_type), sections_of(recipe_type)
    titles = [*(title for title in sections if title != OUTPUT), OUTPUT]
    groups = {
        title: Group(title or OTHERS, sort_key=at, help_formatter=FORMAT)
        for at, title in enumerate(titles, 1)
    }
    group_of = {name: groups[title] for title, names in sections.items() for name in names}
    fields = []
    for name, field in signature(recipe_type).parameters.items():
        whole = field.annotation in (int, int | None)
        option = Parameter(
            help=help[name],
            show_default=None if field.default is not False else False,
            group=group_of[name] if field.kind is field.KEYWORD_ONLY else ARGUMENTS,
            negative_iterable="",
            converter=_whole_number if whole else None,
        )
        fields.append(field.replace(annotation=Annotated[field.annotation, option]))
    return fields, groups[OUTPUT]


def _flag(flag: str, group: Group) -> inspect.Parameter:
    """A flag of the command line alone: how a command prints, or where its options stand."""
    name, kind, default, help = _FLAGS[flag]
    option = Parameter(name=flag, negative="", group=group, help=help, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _whole_number(annotation: Any, tokens: Sequence[Token]) -> int:
    """A whole number, which is not rounded from another."""
    return int(tokens[0].value)


app = _app()


def main(arguments: list[str] | None = None) -> None:
    """The console script: exits with 0, or with 2 and one line on stderr for a user's mistake."""
    tokens = sys.argv[1:] if arguments is None else arguments
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_VisibleLines("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("minitron").setLevel(logging.INFO)  # other libraries: warnings only
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    # It logs what it then raises, and a mistake is to be one line.
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    if arguments is None:
        sys.excepthook = masked_traceback(sys.excepthook)
    with masked_logs():
        _run(tokens)


def _run(tokens: list[str]) -> None:
    try:
        with readable_system_errors():
            app.config, mapped = read_recipe_file(tokens, [*app])
            tokens = [*tokens, *mapped]
            app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
            if sys.stdout is not None:  # None where the output is closed (>&-)
                sys.stdout.flush()  # here, where a closed pipe is no traceback
        _destroy_process_group()
    except CycloptsError as error:
        _fail(mistake_of(error, [one for group in COMMANDS.values() for one in group]))
    except MinitronError as error:
        _fail(str(error))
    except BrokenPipeError:
        _leave_closed_pipe()
    except SystemExit as ended:  # rich, which prints help, ends with 1 where its pipe is closed
        if isinstance(ended.__context__, BrokenPipeError):
            _leave_closed_pipe()
        raise
    except KeyboardInterrupt as error:
        # The notes state where the same command continues.
        notes = "; ".join(["interrupted", *getattr(error, "__notes__", ())])
        print(f"minitron: {one_line(notes)}", file=sys.stderr)
        sys.exit(130)
    finally:
        app.config = ()


class _VisibleLines(logging.Formatter):
    """Messages may quote files: control characters in them are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(visible, super().format(record).split("\n")))


def _destroy_process_group() -> None:
    """Leave the process group of a distributed run, where there is one."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _leave_closed_pipe() -> None:
    """End in silence: nobody reads the output any more. Python flushes it once more at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(CLOSED_PIPE)


def _fail(message: str) -> None:
    print(f"minitron: {one_line(message)}", file=sys.stderr)
    sys.exit(2)
