"""The public names, and what an import costs. The floors are a contract in setup.cfg."""

import importlib
import inspect
import os
import pkgutil
import socket
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


def test_the_version_is_that_of_the_installation_and_costs_no_import() -> None:
    check = (
        "import sys, minitron\nfrom importlib.metadata import version\n"
        "assert minitron.__version__ == version('minitron')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_reader_that_closes_the_output_is_left_in_silence() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for arguments in (["inspect", "tiny"], ["prune", "--help"]):
        command = [sys.executable, "-m", "minitron", *arguments]
        ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        assert (ran.stderr, ran.returncode) == ("", 141)
    os.close(writer)


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            cli.main(["demo", "--port", str(port)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"minitron: port {port} cannot be used (Address already in use): choose another --port, "
        "or leave it out\n"
    )


@pytest.mark.parametrize("command", ["", *(n for n in cli.app if not n.startswith("-"))])
def test_help_fits_a_terminal_and_shows_each_example_as_it_can_be_copied(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main([*command.split(), "--help"])
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, shown)) <= 80
    words = {word for line in shown for word in line.split()}
    assert not any(word.startswith("--empty-") for word in words)
    if command:
        flags = {
            name
            for parameter in cli.app[command].assemble_argument_collection()
            for name in parameter.names
        }
        assert flags <= words, flags - words  # none is broken
        examples = (cli.app[command].help_epilogue or "").splitlines()
        assert shown[-len(examples) :] == examples
