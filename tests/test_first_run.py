"""Quickstart does the main job for real: here on fewer sequences, in CI's script in full."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import minitron
from minitron.cli import main
from minitron.recipes.first_steps import QuickstartRecipe
from minitron.sources.opening import zoo
from minitron.verbs import quickstart as first_run

ROWS = ("teacher", "half, reconstructed", "half, by importance", "half, by random")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in (("CALIBRATION", 4), ("TRAINING", 8), ("HELD_OUT", 4), ("SEQ_LEN", 24)):
        monkeypatch.setattr(first_run, name, count)


@pytest.mark.usefixtures("small")
def test_quickstart_writes_a_student_of_half_the_size_with_its_whole_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "half"
    main(["quickstart", str(out)])
    printed = capsys.readouterr().out
    for row in ROWS:
        assert row in printed
    _, fitted, by_importance, random = caplog.text.split("kept 160 of 256 hidden")
    assert fitted.startswith(" as directions\n")
    assert by_importance.startswith(", ")
    assert " % of score" in by_importance
    assert " % of score" not in random  # a share of random numbers
    assert f"minitron generate {out}" in printed
    assert "loss, distilled" in printed
    assert "loss, pruned" not in printed  # the teacher's is beside it, which is whole
    assert len([text for text in caplog.messages if "llama.cpp" in text]) == 1
    teacher, student = minitron.inspect("tiny"), minitron.inspect(str(out))
    assert 0.47 <= student.parameters / teacher.parameters <= 0.53
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.num_parameters() == student.parameters
    assert AutoTokenizer.from_pretrained(out)("Once")["input_ids"]
    record = json.loads((out / "minitron.json").read_text())
    assert record["command"] == "quickstart"
    assert record["source"]["name"] == "tiny"
    assert record["importance"]["corpus"] == "self"
    assert record["kept"].keys() == {"hidden", "ffn"}
    assert record["reconstruction"]["corpus"] == "self"
    assert [row["name"] for row in record["results"]["rows"]] == list(ROWS)
    card = (out / "README.md").read_text()
    assert "```sh\nminitron quickstart half-again\n```" in card  # half exists
    assert "half, reconstructed" in card
    assert "tokens that `tiny` generated (`self`). Share of the score" in card
    assert "Then distilled: 1 step on 192 tokens that `tiny` generated (`self`). Teacher:" in card
    assert "![what was kept of each layer](kept.png)" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half"]
    assert not (out / "work").exists()


def test_quickstarts_folder_has_a_name_of_its_own() -> None:
    assert QuickstartRecipe().out not in zoo()


@pytest.mark.usefixtures("small")
def test_quickstart_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    one, two = (
        minitron.quickstart(str(tmp_path / name), seed=3).to_json()["rows"] for name in ("a", "b")
    )
    assert one == two
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]
    records = [(tmp_path / name / "minitron.json").read_bytes() for name in ("a", "b")]
    assert records[0] == records[1]
