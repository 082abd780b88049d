"""A README's metadata: read within bounds, and before anything is written of its model."""

from pathlib import Path

import pytest

import minitron
from minitron import cli
from minitron.errors import SourceError
from minitron.records.card_page import read_front_matter
from minitron.records.record_writer import inherited_from
from minitron.sources.opening import open_source
from tests.tiny import tiny_folder

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    "a flow that does not end": "license: [mit",
    "aliases of aliases": LAUGHS,
    "a circle": "license: &a [*a]",
    "nesting": "license: " + "[" * 5000,
    "a tag": "license: !!python/object:os.system x",
    "a list": "- mit",
    "keys that are no words": "1: mit",
}


def readme(folder: Path, block: str) -> Path:
    path = folder / "README.md"
    path.write_bytes(f"---\n{block}\n---\n\n# A model\n".encode())
    return path


@pytest.mark.parametrize("block", BAD.values(), ids=BAD)
def test_damaged_metadata_are_one_line(block: str, tmp_path: Path) -> None:
    path = readme(tmp_path, block)
    with pytest.raises(SourceError, match="README.md has damaged metadata .*mend or remove it"):
        read_front_matter(path)


def test_metadata_are_read_as_the_hub_reads_them(tmp_path: Path) -> None:
    path = readme(tmp_path, "license: mit\nlanguage:\n- en\n- de\nreleased: 2024-01-01")
    assert read_front_matter(path) == {
        "license": "mit",
        "language": ["en", "de"],
        "released": "2024-01-01",
    }
    path.write_text("# No metadata\n\n---\nlicense: mit\n---\n")
    assert read_front_matter(path) == {}


def test_norwegian_is_a_language(tmp_path: Path) -> None:
    readme(tiny_folder(tmp_path / "source"), "license: mit\nlanguage:\n- en\n- no")
    inherited = inherited_from(open_source(str(tmp_path / "source")))
    assert inherited == {"metadata": {"license": "mit", "language": ["en", "no"]}}


@pytest.mark.parametrize("verb", ["convert", "prune", "train"])
def test_damaged_metadata_are_refused_before_anything_is_written(verb: str, tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    readme(source, "license: {mit: [")
    commands = {
        "convert": lambda: minitron.convert(str(source), str(tmp_path / "out")),
        "prune": lambda: minitron.prune(
            str(source), str(tmp_path / "out"), hidden_size=36, corpus="no such text"
        ),
        "train": lambda: minitron.train(
            str(tmp_path / "out"), init=str(source), corpus="no such text"
        ),
    }
    with pytest.raises(SourceError, match="has damaged metadata"):
        commands[verb]()
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("text", [LAUGHS, "corpus: &a [*a]", "corpus: " + "[" * 5000])
def test_a_recipe_of_aliases_circles_or_nesting_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        cli.main(["prune", "tiny", "out", "--recipe", str(tmp_path / "recipe.yaml")])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "recipe.yaml is not YAML of plain values: it" in line
