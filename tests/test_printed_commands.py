"""Every command that a help text, a card or a final "Next:" prints is run, on the tiny models.

The commands are read from what is printed. An example that names a model of the Hub, a text or a
folder is run with tiny ones in their place, on a few tokens.
"""

import re
import shlex
import shutil
from dataclasses import fields, replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import pytest

import minitron
from minitron import cli
from minitron.errors import CorpusError
from minitron.recipe import Recipe
from minitron.sources.opening import zoo
from minitron.verbs import quickstart as first_run

TEXT = "text.jsonl"
# A file or folder of each kind, in place of one that an example names and that does not exist.
FITTED = "fitted"
PRUNED, TAUGHT, SCORES, CACHE, NEMO = "pruned", "taught", "scores.safetensors", "cache", "tiny.nemo"
MODELS = {"source": "tiny", "teacher": "tiny", "init": PRUNED, "student": PRUNED, "folder": PRUNED}
OTHERS = {"importance": SCORES, "teacher_cache": CACHE}
TEXTS = ("corpus", "eval_corpus", "held_out", "retrain_corpus")
# What takes little time, and cuts tiny, in place of what an example gives.
LITTLE = {
    **{"samples": 4, "seq_len": 16, "steps": 1, "batch_size": 2, "retrain_steps": 1},
    **{
        "max_new_tokens": 4,
        "max_candidates": 2,
        "eval_tokens": 32,
        "top": 1,
        "context": 64,
        "stride": 8,
    },
}
SIZES = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 4}
# They need a Hub or serve a page: tests/test_publishing.py, tests/test_space_server.py.
ONLY_BOUND = ("push", "demo")
ON_THE_HUB = re.compile(r"[\w-]+/[\w.-]+")


class Bound(BaseException):
    """Carries the recipe that a command line leads to."""


def bind(command: str) -> tuple[str, Any]:
    """The verb and the recipe of a printed command, checked but not run."""
    words = shlex.split(command)
    words = words[words.index("minitron") + 1 :]  # behind torchrun
    with pytest.MonkeyPatch.context() as patch:

        def stop(recipe: Any) -> None:
            raise Bound(recipe)

        patch.setattr(Recipe, "__post_init__", stop)
        with pytest.raises(Bound) as bound:
            cli.main(words)
    recipe = bound.value.args[0]
    recipe.__post_init__()
    return words[0], recipe


def with_tiny_models(recipe: Any, number: int) -> Any:
    """The recipe with models, texts and folders that exist, and with little work."""
    is_large = any(
        ON_THE_HUB.fullmatch(str(getattr(recipe, name, ""))) for name in ("source", "teacher")
    )
    changed: dict[str, Any] = {}
    for field in fields(recipe):
        name, value = field.name, getattr(recipe, field.name)
        if name == "trainer" and value:  # processes that read take seconds to start
            changed[name] = {key: one for key, one in value.items() if "workers" not in key}
        if value is None or not isinstance(value, str | int | float):
            continue
        if name == "folder" and getattr(recipe, "before_training", False) and value not in zoo():
            changed[name] = TAUGHT
        elif name in MODELS | OTHERS and not Path(str(value)).exists() and value not in zoo():
            kind = NEMO if str(value).endswith(".nemo") else {**MODELS, **OTHERS}[name]
            changed[name] = kind
        elif name in TEXTS and value not in ("self", "random"):
            changed[name] = TEXT
        elif name in SIZES and is_large:
            changed[name] = SIZES[name]
        elif name in ("params", "memory", "latency"):
            changed |= {"params": "3.4M", "memory": None, "latency": None, "device": None}
        elif name == "record" and getattr(recipe, "source", None) in zoo():
            changed[name] = False  # it would write into the package
        elif name == "out":
            changed[name] = f"out-{number}{Path(str(value)).suffix}"
    needs = {
        **{"samples": "corpus", "seq_len": "corpus", "steps": "corpus", "batch_size": "teacher"},
        **dict.fromkeys(("max_candidates", "eval_tokens"), "has_budget"),
        "max_new_tokens": "prompt",
    }
    for name, value in LITTLE.items():
        is_used = name in needs and getattr(recipe, needs[name], None)
        if hasattr(recipe, name) and (is_used or is_set(recipe, name)):
            changed[name] = value
    return replace(recipe, **changed)


def is_set(recipe: Any, name: str) -> bool:
    default = next(field.default for field in fields(recipe) if field.name == name)
    return bool(getattr(recipe, name) != default)


def tokens_of(verb: str, recipe: Any) -> list[str]:
    """The command line of a recipe."""
    words, flags = [verb], []
    for name, parameter in signature(type(recipe)).parameters.items():
        value = getattr(recipe, name)
        if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD:
            words += [value] if value is not None else []
        elif value != parameter.default:
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, dict):
                flags += [word for key in value for word in (f"{flag}.{key}", str(value[key]))]
            elif isinstance(value, bool):
                flags.append(flag if value else f"--no-{flag[2:]}")
            else:
                flags += [flag, str(value)]
    return [*words, *flags]


class Runner:
    """Runs commands and keeps what they print as next ones."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys, self.number, self.next = capsys, 0, list[str]()

    def run(self, tokens: list[str]) -> str:
        try:
            cli.main(tokens)
        except SystemExit as ended:
            errors = self.capsys.readouterr().err
            pytest.fail(f"minitron {shlex.join(tokens)} ended with {ended.code}: {errors[-600:]}")
        printed = self.capsys.readouterr().out
        self.next += next_commands(printed)
        return printed

    def run_tiny(self, command: str) -> None:
        verb, recipe = bind(command)
        needs_data = getattr(recipe, "tasks", None) or getattr(recipe, "preset", None)
        if verb in ONLY_BOUND or needs_data:  # of the Hub: tests/test_task_harness.py
            return
        self.number += 1
        self.run(tokens_of(verb, with_tiny_models(recipe, self.number)))


def next_commands(printed: str) -> list[str]:
    """The commands below a line that ends in "Next:"."""
    found, is_next = [], False
    for line in printed.splitlines():
        if is_next and line.startswith("  minitron "):
            found.append(line.strip())
        else:
            is_next = line.endswith("Next:")
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, a file of scores, a cache and a .nemo, made from tiny."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        line = '{"text": "It was the best of times, it was the worst of times, and much more."}\n'
        Path(TEXT).write_text(line * 60)
        text: dict[str, Any] = {"corpus": TEXT, "samples": 4, "seq_len": 16}
        minitron.importance("tiny", SCORES, **text)
        minitron.prune("tiny", PRUNED, hidden_size=192, **text, reconstruct="none")
        minitron.prune("tiny", FITTED, intermediate_size=512, **text, reconstruct="auto")
        minitron.cache_teacher("tiny", CACHE, **text, batch_size=2)
        minitron.convert("tiny", NEMO, to="nemo")
        minitron.convert(PRUNED, "converted")
        few = {"eval_corpus": TEXT, "steps": 1, "batch_size": 2}
        minitron.distill(PRUNED, TAUGHT, teacher="tiny", **text, **few)
        minitron.evaluate(TAUGHT, corpus=TEXT, seq_len=64, record=True)
        minitron.train("trained", init="tiny", **text, steps=1, batch_size=2)
        make_small(patch)
        minitron.quickstart("quick")
    return root


@pytest.fixture
def small_quickstart(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Let quickstart sample little text."""
    for name, count in (("CALIBRATION", 4), ("TRAINING", 8), ("HELD_OUT", 4), ("SEQ_LEN", 24)):
        patch.setattr(first_run, name, count)


@pytest.fixture
def runner(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Runner:
    """Runs commands in a folder with what was made."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return Runner(capsys)


VERBS = [name for name in cli.app if not name.startswith("-")]


def examples_of(verb: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The examples in a command's help, as it is printed."""
    cli.main([verb, "--help"])
    printed = capsys.readouterr().out.partition("Examples:")[2].replace("\\\n", " ")
    return [line.strip() for line in printed.splitlines() if "minitron " in line]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.usefixtures("small_quickstart")
def test_every_example_of_a_help_text_runs_and_so_do_the_commands_it_prints(
    verb: str, runner: Runner
) -> None:
    examples = examples_of(verb, runner.capsys)
    assert examples
    for command in examples:
        runner.run_tiny(command)
    for command in dict.fromkeys(runner.next):
        runner.run_tiny(command)


CARDS = (PRUNED, FITTED, TAUGHT, "trained", "converted", "quick")


def commands_beside_code(card: str) -> list[str]:
    """The commands that a card names in its sentences."""
    return re.findall(r"`(minitron [^`]+ [^`]+)`", re.sub(r"```.*?```", "", card, flags=re.DOTALL))


@pytest.mark.parametrize("name", [*CARDS, *zoo()])
def test_every_command_in_the_sentences_of_a_card_runs(name: str, runner: Runner) -> None:
    card = (zoo().get(name, Path(name)) / "README.md").read_text()
    commands = commands_beside_code(card)
    assert commands or name in ("trained", "quick")
    for command in commands:
        _, recipe = bind(command)
        if getattr(recipe, "folder", None) in zoo():  # fitted to a text that is not at hand
            with pytest.raises(
                CorpusError, match=r"books-train.jsonl.gz does not exist \(--corpus"
            ):
                minitron.remake(**vars(recipe))
            continue
        runner.run_tiny(command)
        if getattr(recipe, "out", None) == PRUNED:  # what remake builds again
            assert weights(f"out-{runner.number}") == weights(PRUNED)


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.usefixtures("small_quickstart")
def test_the_commands_of_a_card_make_the_folder_again(
    name: str, made: Path, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(made / TEXT, work)
    monkeypatch.chdir(work)
    for command in commands_in_blocks((made / name / "README.md").read_text()):
        runner.run(shlex.split(command)[1:])
    again = "quick-again" if name == "quick" else name
    assert weights(again) == weights(str(made / name))


@pytest.mark.parametrize("name", zoo())
def test_the_commands_of_an_embedded_models_card_are_valid(name: str) -> None:
    commands = commands_in_blocks((zoo()[name] / "README.md").read_text())
    assert [bind(command)[0] for command in commands][-1] in ("train", "distill")


def commands_in_blocks(card: str) -> list[str]:
    return [
        c for block in re.findall(r"```sh\n(.*?)```", card, re.DOTALL) for c in block.splitlines()
    ]


def weights(folder: str) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()
