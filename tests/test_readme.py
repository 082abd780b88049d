"""What README and help texts say works."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from minitron import cli
from minitron.recipe import TrainRecipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
# What is on the Hub is run against a Hub: tests/test_readme_on_the_hub.py.
ELSEWHERE = README.partition("\n## On the Hub\n")[2].partition("\n## ")[0]
PYTHON = [code for language, code in BLOCKS if language == "python" and code not in ELSEWHERE]


def commands_of(text: str) -> list[str]:
    """Every `minitron ...` line of a shell block, continuation lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if part.startswith("minitron ")]


SHELL = [c for language, code in BLOCKS if language != "python" for c in commands_of(code)]
EPILOGUES = [
    line.strip()
    for name in cli.app
    if not name.startswith("-")
    for line in (cli.app[name].help_epilogue or "").splitlines()
    if line.strip().startswith("minitron ")
]


@pytest.mark.parametrize("code", PYTHON)
def test_a_python_block_of_readme_runs(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("command", [*SHELL, *EPILOGUES])
def test_a_command_that_is_shown_is_understood(command: str) -> None:
    tokens = shlex.split(command)[1:]
    if "--recipe" in tokens:
        place = tokens.index("--recipe")
        tokens[place : place + 2] = ["--init", "tiny"]  # what the file would say
    cli.app.parse_args(tokens, exit_on_error=False, print_error=False)


def test_every_command_has_help_with_examples_and_is_in_readme() -> None:
    for name in cli.app:
        if name.startswith("-"):
            continue
        assert f"minitron {name}" in (cli.app[name].help_epilogue or ""), name
        assert f"`minitron {name}" in README, name


@pytest.mark.parametrize("name", ["tiny.yaml", "tiny-continued.yaml"])
def test_a_recipe_that_ships_is_a_recipe(name: str) -> None:
    import minitron

    text = (Path(minitron.__file__).parent / "recipes" / name).read_text()
    recipe = TrainRecipe(out="out", corpus="books.jsonl.gz", **yaml.safe_load(text))
    assert recipe.seq_len == 512


def test_readme_has_two_setup_commands_that_pin_what_was_tested() -> None:
    setups = [line for _, code in BLOCKS for line in code.splitlines() if "pip install" in line]
    assert len(setups) == 2
    assert all("-c constraints.txt" in line for line in setups)
    assert setups[0].endswith("minitron quickstart")
    assert setups[1].endswith("python -m pytest -n 2")
