"""The public names, and what an import costs. The floors are a contract in setup.cfg."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import minitron
from minitron import cli


def modules() -> list[str]:
    """Every module of the package, its folders' own included."""
    found = pkgutil.walk_packages(minitron.__path__, "minitron.")
    return ["minitron", *(module.name for module in found)]


def test_every_verb_stays_its_function_whatever_is_imported() -> None:
    for module in modules():
        if not module.endswith("__main__"):
            importlib.import_module(module)
    for name in minitron.__all__:
        assert callable(getattr(minitron, name)), name
        assert getattr(minitron, name).__doc__, name


@pytest.mark.parametrize("command", [name for name in cli.app if not name.startswith("-")])
def test_every_command_is_a_function_of_the_same_name_and_arguments(command: str) -> None:
    function = getattr(minitron, command.replace("-", "_"))
    options = inspect.signature(cli.app[command].default_command).parameters
    own = {"as_json", "recipe_file"}  # how a command prints, and where its options stand
    expected = [name for name in options if name not in own]
    assert [*inspect.signature(function).parameters] == expected


def test_the_public_names_are_these() -> None:
    assert minitron.__all__ == [
        "MinitronError",
        "cache_teacher",
        "card",
        "convert",
        "demo",
        "distill",
        "distillation_loss",
        "evaluate",
        "generate",
        "importance",
        "inspect",
        "measure_importance",
        "prune",
        "push",
        "quickstart",
        "remake",
        "search",
        "teacher_cache",
        "train",
    ]


@pytest.mark.parametrize("command", ["", "prune", "train", "quickstart"])
def test_help_imports_neither_torch_nor_transformers(command: str) -> None:
    check = (
        "import sys\nfrom minitron.cli import main\nmain(sys.argv[1:])\n"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & sys.modules.keys()"
    )
    arguments = [*command.split(), "--help"]
    ran = subprocess.run(
        [sys.executable, "-c", check, *arguments], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "Usage: minitron" in ran.stdout


@pytest.mark.parametrize("command", [name for name in cli.app if not name.startswith("-")])
def test_every_command_is_a_module_of_its_name(command: str) -> None:
    assert importlib.util.find_spec(f"minitron.verbs.{command.replace('-', '_')}")


def test_importing_minitron_configures_nothing() -> None:
    check = (
        "import logging, minitron, minitron.verbs.prune, modeling_nemotron\n"
        "from transformers import AutoConfig\n"
        "assert not logging.getLogger().handlers\n"
        "assert AutoConfig.for_model('nemotron').__class__.__module__.startswith('transformers')"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
