"""The command line: `minitron VERB ...`; each verb is a Python function of the same name.

Knows the flags beside a recipe's and how results are printed; all other flags come from the
recipes. Heavy modules are imported inside the commands, so that `--help` answers at once. A user's
mistake is one line on stderr and exit code 2.
"""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any
from unicodedata import category

from cyclopts import App, CycloptsError, Parameter, Token
from cyclopts.config import Dict
from docstring_parser import parse_from_object

from minitron.credentials import masked_logs, masked_traceback
from minitron.errors import MinitronError, TargetError, one_line, readable_system_errors, visible
from minitron.recipe import (
    CardRecipe,
    ConvertRecipe,
    DemoRecipe,
    DistillRecipe,
    EvaluateRecipe,
    GenerateRecipe,
    ImportanceRecipe,
    InspectRecipe,
    PruneRecipe,
    PushRecipe,
    QuickstartRecipe,
    RemakeRecipe,
    SearchRecipe,
    TeacherCacheRecipe,
    TrainRecipe,
)
from minitron.surroundings import check_system

AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")]
RecipeFile = Annotated[
    Path | None,
    Parameter(
        name="--recipe",
        help="A YAML file of these options, or the name of a published one, such as "
        "minitron-8b-prune; flags override it.",
    ),
]
Command = Callable[..., None]
PUBLISHED = Path(__file__).parent / "recipes"

app = App(
    name="minitron",
    help="Compress language models the Minitron way: measure what matters, prune, retrain, share.",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)


def _examples(*commands: str) -> str:
    return "Examples:\n\n" + "\n\n".join(f"  {command}" for command in commands)


def _with_options_of(recipe_type: type[Any]) -> Callable[[Command], Command]:
    """Give a command the fields of a recipe as its arguments, each with its help."""

    def decorate(run: Command) -> Command:
        documented = [base for base in reversed(recipe_type.__mro__) if is_dataclass(base)]
        params = [param for base in documented for param in parse_from_object(base).params]
        help_of = {param.arg_name: param.description for param in params}
        fields = [
            field.replace(annotation=_with_help(field.annotation, help_of[name]))
            for name, field in signature(recipe_type).parameters.items()
        ]
        own = list(signature(run).parameters.values())[1:]

        @wraps(run)
        def command(*args: Any, **kwargs: Any) -> None:
            check_system()
            apart = {p.name: kwargs.pop(p.name) for p in own if p.name in kwargs}
            run(recipe_type(*args, **kwargs), **apart)

        command.__signature__ = Signature([*fields, *own])  # type: ignore[attr-defined]
        return command

    return decorate


def _with_help(annotation: Any, help: str | None) -> Any:
    """A field's type with its help; a whole number is not rounded from another."""
    whole = annotation in (int, int | None)
    return Annotated[annotation, Parameter(help=help, converter=_whole_number if whole else None)]


def _whole_number(annotation: Any, tokens: Sequence[Token]) -> int:
    return int(tokens[0].value)


@app.command(
    help_epilogue=_examples(
        "minitron quickstart",
        "minitron quickstart my-first-student --seed 1",
    )
)
@_with_options_of(QuickstartRecipe)
def quickstart(recipe: QuickstartRecipe) -> None:
    """Prune, distill and compare the embedded teacher: minutes on two cores, no network."""
    from minitron.verbs.quickstart import quickstart

    results = quickstart(**vars(recipe)).to_json()
    _show_table(["", *results["columns"]], [[r["name"], *r["values"]] for r in results["rows"]])
    print(f"\n{results['measured']}\n\nWritten: {recipe.out}. Next:")
    print(f'  minitron generate {recipe.out} "It was the best of times,"')
    print(f"  minitron inspect {recipe.out}")
    print("  minitron prune tiny another --num-hidden-layers 4 --corpus self --samples 64")


@app.command(
    help_epilogue=_examples(
        "minitron inspect tiny",
        "minitron inspect nvidia/Minitron-8B-Base --json",
    )
)
@_with_options_of(InspectRecipe)
def inspect(recipe: InspectRecipe, *, as_json: AsJson = False) -> None:
    """Print a model's sizes, parameters, bytes and layout. Reads no weights."""
    from minitron.sources.opening import open_source
    from minitron.verbs.inspect import inspection_of

    inspection = inspection_of(open_source(recipe.source, reads_weights=False))
    _show(inspection.to_json() if as_json else vars(inspection), as_json=as_json)


@app.command(
    help_epilogue=_examples(
        "minitron prune tiny half --hidden-size 160 --intermediate-size 608 --corpus self",
        "minitron prune nvidia/Minitron-8B-Base 4b --hidden-size 3072 --intermediate-size 9216 "
        "--num-attention-heads 24 --corpus books.jsonl.gz --samples 64",
        "minitron prune tiny tiny-shallow --num-hidden-layers 4 --importance tiny.safetensors",
    )
)
@_with_options_of(PruneRecipe)
def prune(recipe: PruneRecipe, *, recipe_file: RecipeFile = None) -> None:
    """Cut a model to a smaller size, ranked by importance, into a Hub-ready folder."""
    from minitron.verbs.inspect import inspection_of
    from minitron.verbs.prune import prune

    folder = prune(**vars(recipe))
    print(f"{recipe.out}: {inspection_of(folder).parameters:,} parameters")


@app.command(
    help_epilogue=_examples(
        "minitron convert minitron-8b-base.nemo minitron-8b-base",
        "minitron convert nvidia/Minitron-8B-Base minitron-8b-base --dtype bfloat16",
        "minitron convert minitron-8b-base.nemo engine --to trtllm --tp 2 --dtype bfloat16",
        "minitron convert tiny tiny.nemo --to nemo",
    )
)
@_with_options_of(ConvertRecipe)
def convert(recipe: ConvertRecipe, *, recipe_file: RecipeFile = None) -> None:
    """Convert a model to another format: .nemo, NeMo 2, Hub, TensorRT-LLM, ONNX."""
    from minitron.verbs.convert import convert

    print(f"{convert(**vars(recipe))}: written")


@app.command(
    help_epilogue=_examples(
        "minitron importance tiny tiny.safetensors --corpus books.jsonl.gz --samples 256",
        "minitron importance nvidia/Minitron-8B-Base 8b.safetensors --corpus books.jsonl.gz "
        "--memory-budget 6GiB --plot 8b.png",
        "torchrun --nproc-per-node 8 -m minitron importance nvidia/Minitron-8B-Base "
        "8b.safetensors --corpus books.jsonl.gz",
    )
)
@_with_options_of(ImportanceRecipe)
def importance(recipe: ImportanceRecipe, *, recipe_file: RecipeFile = None) -> None:
    """Measure importance once, for several prunings: `minitron prune --importance FILE`.

    A model larger than the memory budget is read layer by layer; processes that torchrun launched
    share the corpus. If interrupted, the same command resumes from the last finished chunk."""
    from minitron.sources.processes import is_first_process
    from minitron.verbs.importance import measure_importance

    measured = measure_importance(**vars(recipe))
    if is_first_process():
        scores = visible(measured.made_by["scores"])
        print(f"{recipe.out}: {scores} scores of {', '.join(measured.axes)}")


@app.command(
    help_epilogue=_examples(
        "minitron search tiny --ratio 0.5 --corpus self --samples 64",
        "minitron search nvidia/Minitron-8B-Base found --params 4B --memory 12GiB --context 8192 "
        "--corpus books.jsonl.gz --samples 256 --held-out held-out.jsonl.gz",
        "minitron search tiny found --latency 4ms --device cpu --importance tiny.safetensors "
        "--held-out held-out.txt --retrain-steps 50 --retrain-corpus books.jsonl.gz",
    )
)
@_with_options_of(SearchRecipe)
def search(
    recipe: SearchRecipe, *, as_json: AsJson = False, recipe_file: RecipeFile = None
) -> None:
    """Find the best sizes within a budget of parameters, memory or latency, by held-out loss.

    If interrupted, the same command resumes where it stopped."""
    from minitron.verbs.search import search

    report = search(**vars(recipe))
    if as_json:
        print(json.dumps(report.to_json()))
        return
    _show_table(report.columns(), report.rows())
    print("\n" + "\n".join(map(visible, [*report.notes(), f"{report.reason()}."])))
    if recipe.out is not None:
        print(f"\nWritten: {recipe.out}")


@app.command(
    help_epilogue=_examples(
        "minitron train retrained --init tiny-half --corpus books.jsonl.gz --steps 500",
        "minitron train tiny-again --recipe tiny --corpus books.jsonl.gz",
        "minitron train retrained --init tiny-half --corpus books.jsonl.gz "
        "--trainer.optim adafactor",
    )
)
@_with_options_of(TrainRecipe)
def train(recipe: TrainRecipe, *, recipe_file: RecipeFile = None) -> None:
    """Train a causal language model, from scratch or further, into a Hub-ready folder.

    If interrupted, the same command resumes from the last checkpoint."""
    from minitron.verbs.train import train

    train(**vars(recipe))
    _print_written(recipe.out)


@app.command(
    help_epilogue=_examples(
        "minitron distill tiny-half tiny-student --teacher tiny --corpus books.jsonl.gz",
        "minitron distill 4b 4b-student --teacher nvidia/Minitron-8B-Base --corpus books.jsonl.gz "
        "--seq-len 4096 --gradient-checkpointing --eval-corpus held-out.jsonl.gz",
        "minitron distill tiny-half tiny-student --teacher-cache tiny-cache "
        "--corpus books.jsonl.gz",
        "torchrun --nproc-per-node 8 -m minitron distill 4b 4b-student "
        "--recipe distill-8-gpus --corpus books.jsonl.gz",
    )
)
@_with_options_of(DistillRecipe)
def distill(recipe: DistillRecipe, *, recipe_file: RecipeFile = None) -> None:
    """Train a student on its teacher's predictions, into a Hub-ready folder.

    If interrupted, the same command resumes from the last checkpoint."""
    from minitron.verbs.distill import distill

    distill(**vars(recipe))
    _print_written(recipe.out)


@app.command(
    help_epilogue=_examples(
        "minitron teacher-cache tiny tiny-cache --corpus books.jsonl.gz",
        "minitron teacher-cache nvidia/Minitron-8B-Base 8b-cache --corpus books.jsonl.gz "
        "--top-k 64",
    )
)
@_with_options_of(TeacherCacheRecipe)
def teacher_cache(recipe: TeacherCacheRecipe, *, recipe_file: RecipeFile = None) -> None:
    """Write a teacher's outputs on a corpus, to distill from without it.

    If interrupted, the same command resumes with the missing shards."""
    from minitron.verbs.teacher_cache import cache_teacher

    cache_teacher(**vars(recipe))
    _print_written(recipe.out)


@app.command(
    help_epilogue=_examples(
        "minitron evaluate tiny --corpus held-out.txt",
        "minitron evaluate tiny-half --corpus held-out.jsonl.gz --seq-len 512 --stride 256 --json",
        "minitron evaluate nvidia/Minitron-4B-Base --tasks hellaswag,arc_challenge --limit 100",
        "minitron evaluate 4b-student --preset minitron --record",
        "minitron evaluate nvidia/Minitron-4B-Base --preset cnn_dailymail",
        "minitron evaluate tiny --tasks my_quiz --include-path my-tasks --num-fewshot 2",
    )
)
@_with_options_of(EvaluateRecipe)
def evaluate(recipe: EvaluateRecipe, *, as_json: AsJson = False) -> None:
    """Measure loss (nats a token), perplexity and bits per byte on text, or scores on benchmarks.

    Benchmarks are lm-eval's, ROUGE of summaries is rouge-score's: pip install 'minitron[evals]'."""

    from minitron.verbs.evaluate import measure, record_evaluation

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about intended options
    evaluation = measure(recipe)
    _show_evaluation(evaluation.to_json(), recipe, as_json=as_json)
    if recipe.record:  # hours of work are printed before anything is written
        record_evaluation(evaluation, recipe)


def _show_evaluation(evaluation: dict[str, Any], recipe: EvaluateRecipe, *, as_json: bool) -> None:
    """What was measured, as JSON or as tables."""
    if as_json:
        _show(evaluation, as_json=True)
        return
    tasks: Any = evaluation.pop("tasks")
    if recipe.corpus is not None:
        _show(evaluation, as_json=False)
    rows = [[name, m, _readable(v)] for name, task in tasks.items() for m, v in task.items()]
    if rows:
        _show_table(["task", "", "score"], [row for row in rows if row[2] != "None"])
    sys.stdout.flush()


@app.command(
    help_epilogue=_examples(
        'minitron generate tiny "It was the best of times,"',
        'minitron generate tiny "Call me" --temperature 0.8 --seed 3',
    )
)
@_with_options_of(GenerateRecipe)
def generate(recipe: GenerateRecipe) -> None:
    """Continue a prompt, and print the text while it is generated."""
    from minitron.verbs.generate import stream

    prompt = recipe.prompt  # printed with the first text after it, so that no error follows it

    def write(text: str) -> None:
        nonlocal prompt
        print(prompt + _without_controls(text), end="", flush=True)
        prompt = ""

    stream(recipe, write)
    print(prompt)


@app.command(
    help_epilogue=_examples(
        "minitron card half",
        "minitron card half --overwrite",
    )
)
@_with_options_of(CardRecipe)
def card(recipe: CardRecipe) -> None:
    """Write a folder's model card: sizes removed, training, scores, use, and how to remake it.

    A README.md that was written or changed by hand is kept, unless --overwrite is given."""
    from minitron.verbs.card import card

    print(f"{card(**vars(recipe))}: written")


@app.command(
    help_epilogue=_examples(
        "minitron push tiny-half me/tiny-half --private",
        "minitron push tiny-half me/tiny-half --branch distilled --tag v2",
        "minitron push 4b nvidia/Minitron-4B-Base --create-pr --commit-message 'Add safetensors'",
        "minitron push --space me/minitron-demo",
        "minitron push --space me/minitron-demo nvidia/Minitron-8B-Base me/tiny-half",
    )
)
@_with_options_of(PushRecipe)
def push(recipe: PushRecipe) -> None:
    """Upload a model folder to the Hub, in one commit: only one that loads, and no pickles.

    With --space, upload the Space that `minitron demo` shows, with minitron itself, instead.
    If interrupted, the same command sends only the missing files."""
    from minitron.verbs.push import push

    print(push(**vars(recipe)).url)


@app.command(
    help_epilogue=_examples(
        "minitron remake half half-again",
        "minitron remake me/minitron-4b minitron-4b",
        "minitron remake half half-again --source elsewhere/tiny",
        "minitron remake tiny-half start --before-training",
    )
)
@_with_options_of(RemakeRecipe)
def remake(recipe: RemakeRecipe) -> None:
    """Build a pruned or converted folder's weights again: the same bytes, without any text."""
    from minitron.verbs.remake import remake

    files = remake(**vars(recipe)).files_of_tensors
    print(f"{recipe.out}: {len(files)} tensors, the same bytes")


@app.command(
    help_epilogue=_examples(
        "minitron demo",
        "minitron demo tiny tiny-half --port 8000",
    )
)
@_with_options_of(DemoRecipe)
def demo(recipe: DemoRecipe) -> None:
    """Show models in a browser: compare them, prune one, see measured results."""
    from minitron.verbs.demo import demo

    demo(**vars(recipe))


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
            app.config, mapped = _recipe_file(tokens)
            tokens = [*tokens, *mapped]
            app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        _destroy_process_group()
    except (MinitronError, CycloptsError) as error:
        _fail(error)
    except KeyboardInterrupt as error:
        # The notes say where the same command goes on.
        notes = "; ".join(["interrupted", *getattr(error, "__notes__", ())])
        print(f"minitron: {one_line(notes)}", file=sys.stderr)
        sys.exit(130)
    finally:
        app.config = ()


class _VisibleLines(logging.Formatter):
    """Messages may quote files: control characters in them are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(visible, super().format(record).split("\n")))


def _recipe_file(tokens: list[str]) -> tuple[tuple[Dict, ...], list[str]]:
    """The options of the file that --recipe names, which flags override; and the entries of its
    mappings as flags, since cyclopts reads a mapping from one place only."""
    for index, token in enumerate(tokens):
        if token == "--recipe" and index + 1 < len(tokens):
            name = tokens[index + 1]
        elif token.startswith("--recipe="):
            name = token.removeprefix("--recipe=")
        else:
            continue
        options = _options(name)
        plain = {key: value for key, value in options.items() if not isinstance(value, dict)}
        # Under each verb: at the top, cyclopts takes a key that is a verb's name for a verb.
        return (Dict(dict.fromkeys(app, plain), source=name),), _mapping_flags(options, tokens)
    return (), []


def _mapping_flags(options: dict[str, Any], tokens: list[str]) -> list[str]:
    """The entries of a recipe's mappings as flags, where they are not given as flags already."""
    given = {token.partition("=")[0].replace("_", "-") for token in tokens}
    return [
        f"--{key}.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for key, mapping in options.items()
        if isinstance(mapping, dict)
        for name, value in mapping.items()
        if f"--{key}.{name}".replace("_", "-") not in given
    ]


def _options(name: str) -> dict[str, Any]:
    """The options in a recipe file. Raises TargetError."""
    from minitron.files.plain_yaml import read_yaml

    published = {path.stem: path for path in PUBLISHED.glob("*.yaml")}
    path = Path(name) if Path(name).is_file() else published.get(name, Path(name))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = ", ".join(sorted(published))
        raise TargetError(
            f"--recipe {name} does not exist: name a YAML file, or one of {names}"
        ) from None
    except OSError as error:
        raise TargetError(f"--recipe {name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TargetError(f"--recipe {name} is not YAML: {error}") from None
    except ValueError as error:  # a zero byte in the name
        raise TargetError(f"--recipe {name} cannot be read: {error}") from None
    options = read_yaml(text, f"--recipe {name}", TargetError)
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise TargetError(f"--recipe {name} holds {options!r:.40}: write one `key: value` a line")
    return options


def _destroy_process_group() -> None:
    """Leave the process group of a distributed run, where there is one."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _print_written(out: str) -> None:
    """Print it in one process, however many wrote."""
    from minitron.sources.processes import is_first_process

    if is_first_process():
        print(f"{out}: written")


def _fail(error: Exception) -> None:
    print(f"minitron: {one_line(str(error))}", file=sys.stderr)
    sys.exit(2)


def _show(record: dict[str, Any], *, as_json: bool) -> None:
    """A record as one JSON object, or as aligned lines."""
    if as_json:
        print(json.dumps(record))
        return
    width = max(map(len, record))
    for key, value in record.items():
        if value not in (None, {}, []):
            print(f"{key.ljust(width)}  {visible(_readable(value))}")


def _show_table(header: list[str], rows: list[list[str]]) -> None:
    """Names on the left, numbers on the right."""
    rows = [list(map(visible, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        print("  ".join([row[0].ljust(widths[0]), *cells]))


def _without_controls(text: str) -> str:
    """A model's text, with escapes for all control characters but line ends and tabs."""
    return "".join(
        letter if letter in "\n\t" or category(letter) != "Cc" else visible(letter)
        for letter in text
    )


def _readable(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
