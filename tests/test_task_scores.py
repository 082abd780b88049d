"""Scores reach minitron.json, the card's model-index and .eval_results as the Hub reads them."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

import minitron
from minitron.records.task_scores import (
    TaskScores,
    from_record,
    model_index,
    record_of_scores,
    write_eval_results,
)
from tests.task_folders import QUIZ, write_quiz

HELLASWAG = TaskScores(
    "hellaswag",
    {"acc": 0.5123, "acc_norm": 0.76054},
    samples=10042,
    num_fewshot=10,
    errors={"acc": 0.005, "acc_norm": 0.0041},
    dataset="Rowan/hellaswag",
    split="validation",
    made_by="lm-eval 0.4.13",
)
ARC = TaskScores(
    "arc_challenge", {"acc": 0.5}, 40, 25, limited=True, dataset="allenai/ai2_arc", config="ARC-C"
)
BOOKS = TaskScores("books", {"bits_per_byte": 1.2345678}, 3, 0)


def test_a_record_reads_back_as_the_scores_that_it_was_made_of() -> None:
    scores = [HELLASWAG, ARC, BOOKS]
    record = json.loads(json.dumps(record_of_scores(scores, "minitron evaluate a --tasks b")))
    assert from_record(record) == scores
    assert record["measured"].endswith("`minitron evaluate a --tasks b`")


def test_rows_show_percent_of_shares_and_other_metrics_as_they_are() -> None:
    rows = record_of_scores([HELLASWAG, ARC, BOOKS], "")["rows"]
    assert [(row["name"], row["values"]) for row in rows] == [
        ("hellaswag, acc", ["10", "10,042", "51.2 ± 0.5"]),
        ("hellaswag, acc_norm", ["10", "10,042", "76.1 ± 0.4"]),
        ("arc_challenge, acc", ["25", "first 40", "50.0"]),
        ("books, bits_per_byte", ["0", "3", "1.235"]),
    ]


def test_speed_is_printed_but_never_recorded() -> None:
    fast = replace(BOOKS, tokens_per_second=12.5)
    assert fast.to_json()["tokens_per_second"] == 12.5
    assert record_of_scores([fast], "") == record_of_scores([BOOKS], "")


def test_a_perplexity_beyond_floating_point_is_null_in_json() -> None:
    assert TaskScores("a", {"word_perplexity": math.inf}, 1, 0).to_json()["word_perplexity"] is None


def test_the_model_index_is_one_that_the_hub_reads() -> None:
    index = model_index([HELLASWAG, ARC], "tiny-half")
    card = ModelCardData(library_name="transformers", **{"model-index": index})
    assert card.to_dict()["model-index"] == index
    name, results = model_index_to_eval_results(index)
    assert name == "tiny-half"
    found = {(r.dataset_type, r.metric_type): (r.metric_value, r.dataset_args) for r in results}
    assert found == {
        ("Rowan/hellaswag", "acc"): (51.23, {"num_few_shot": 10}),
        ("Rowan/hellaswag", "acc_norm"): (76.05, {"num_few_shot": 10}),
        ("allenai/ai2_arc", "acc"): (50.0, {"num_few_shot": 25, "limit": 40}),
    }


def test_eval_results_hold_whole_tasks_of_the_hub_only(tmp_path: Path) -> None:
    write_eval_results(tmp_path, [HELLASWAG])
    write_eval_results(tmp_path, [ARC, BOOKS, replace(HELLASWAG, name="again")])
    written = list((tmp_path / ".eval_results").iterdir())
    assert [path.name for path in written] == ["again.yaml"]
    assert yaml.safe_load(written[0].read_text()) == [
        {
            "dataset": {"id": "Rowan/hellaswag", "task_id": "again"},
            "value": 76.05,
            "notes": "10-shot, acc_norm, again, lm-eval 0.4.13",
        }
    ]


def test_a_folder_without_results_to_show_gets_no_place_for_them(tmp_path: Path) -> None:
    write_eval_results(tmp_path, [ARC, BOOKS])
    assert list(tmp_path.iterdir()) == []


def test_record_adds_benchmarks_beside_what_was_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_quiz(tmp_path / "tasks")
    (tmp_path / "a.txt").write_text("It was the best of times, it was the worst of times.")
    folder = tmp_path / "copy"
    minitron.convert("tiny", str(folder))
    options: dict[str, Any] = {"stride": 64, "seq_len": 128, "dtype": "float32"}
    text = minitron.evaluate(str(folder), corpus=str(tmp_path / "a.txt"), **options, record=True)
    assert text.tasks == {}
    scored = minitron.evaluate(
        str(folder), tasks="quiz", include_path=str(tmp_path / "tasks"), limit=4, record=True
    )
    record = json.loads((folder / "minitron.json").read_text())
    assert record["results"]["rows"][0]["values"][0] == f"{text.loss:.4f}"
    assert "at least 64 and at most 128 before it" in record["results"]["measured"]
    command = "minitron evaluate copy --corpus a.txt --seq-len 128 --stride 64 --dtype float32"
    assert f"`{command}`" in record["results"]["measured"]
    assert from_record(record["benchmarks"]) == [scored.tasks["quiz"]]
    assert record["benchmarks"]["scores"][0]["samples"] == 4 < len(QUIZ)
    assert str(tmp_path) not in (folder / "minitron.json").read_text()
    assert "--tasks quiz --include-path tasks --limit 4" in record["benchmarks"]["measured"]
