"""The code and commands of README and of the help texts work."""

import re
import shlex
import shutil
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

import minitron
from minitron import cli
from minitron.errors import TargetError
from minitron.recipes.conversion import ConvertRecipe
from minitron.recipes.training import TrainRecipe
from minitron.sources.opening import zoo
from tests.tiny import FAMILIES, tiny_folder

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
    command
    for name in cli.app
    if not name.startswith("-")
    for command in commands_of(cli.app[name].help_epilogue or "")
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
        tokens[place : place + 2] = ["--init", "tiny"]  # what the file would contain
    cli.app.parse_args(tokens, exit_on_error=False, print_error=False)


def test_every_command_has_help_with_examples_and_is_in_readme() -> None:
    for name in cli.app:
        if name.startswith("-"):
            continue
        assert f"minitron {name}" in (cli.app[name].help_epilogue or ""), name
        assert f"`minitron {name}" in README, name


@pytest.mark.parametrize("name", ["tiny.yaml", "tiny-continued.yaml"])
def test_a_recipe_that_ships_is_a_recipe(name: str) -> None:
    text = (Path(minitron.__file__).parent / "recipes" / name).read_text()
    recipe = TrainRecipe(out="out", corpus="books.jsonl.gz", **yaml.safe_load(text))
    assert recipe.seq_len == 512


def test_readme_has_two_setup_commands_that_pin_what_was_tested() -> None:
    setups = [line for _, code in BLOCKS for line in code.splitlines() if "pip install" in line]
    assert len(setups) == 2
    assert all("-c constraints.txt" in line for line in setups)
    assert setups[0].endswith("minitron quickstart")
    assert setups[1].endswith("python -m pytest -n 2")


def conversions() -> list[tuple[str, str, bool]]:
    """README's table: family, format, whether it is written."""
    table = README.partition("### Conversions")[2].partition("\n## ")[0]
    rows = [re.findall(r"[^|`\s]+", line) for line in table.splitlines() if line.startswith("| ")]
    head, *families = rows
    return [
        (family.lower(), target, cell == "yes")
        for family, *cells in families
        for target, cell in zip(head[1:], cells, strict=True)
    ]


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each family, with the embedded teacher's tokenizer."""
    root = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        # heads x head_dim is hidden_size, as llama.cpp wants it, and layers are of its own order
        order = {"no_rope_layer_interval": 4} if family == "smollm3" else {}
        sizes = {"num_hidden_layers": 1, "vocab_size": 4096, "hidden_size": 48, **order}
        tiny_folder(root / family, family, **sizes)
        for path in zoo()["tiny"].glob("tokenizer*"):
            shutil.copy(path, root / family)
    return root


def test_the_table_of_formats_is_complete() -> None:
    assert {family for family, _, _ in conversions()} == set(FAMILIES)
    formats = {target for _, target, _ in conversions()}
    assert formats == set(get_args(get_type_hints(ConvertRecipe)["to"]))


# Graphs take seconds each: tests/test_onnx_export.py exports one of each kind of family.
@pytest.mark.parametrize(
    ("family", "target", "is_written"), [cell for cell in conversions() if cell[1] != "onnx"]
)
def test_each_family_is_placed_as_the_table_says(
    family: str, target: str, is_written: bool, one_layer: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"out.{target}"
    if is_written:
        assert minitron.convert(str(one_layer / family), str(out), to=target).exists()
        return
    with pytest.raises(
        TargetError,
        match="only nemotron.*(NeMo itself imports|convert_checkpoint)|convert_hf_to_gguf.py",
    ):
        minitron.convert(str(one_layer / family), str(out), to=target)
    assert not list(tmp_path.iterdir())
