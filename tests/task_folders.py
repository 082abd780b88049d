"""Builders of lm-eval tasks with local data: YAML and a few lines of text, no network."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

QUIZ = (
    ("The sun is", ["hot", "a small bird"], 0),
    ("He opened the", ["seven", "door", "of"], 1),
    ("She said that she", ["tree", "would not go", "was"], 2),
    ("It was the best of", ["times", "spoons"], 0),
    ("The old man sat by the", ["fire", "yesterday"], 1),
    # With 0, 1 and 3 examples the embedded teacher answers these differently.
    ("Grass is", ["green", "white", "red"], 1),
    ("Fire is", ["white", "hot"], 1),
)
SHOTS = (
    ("A dog can", ["bark", "read"], 0),
    ("Snow is", ["black", "white"], 1),
    ("Fish live in", ["water", "trees"], 0),
)
BOOKS = ("It was a dark night; the wind blew.", "wörds and words\nof 漢字", "x")


def write_task(
    folder: Path, name: str, documents: Sequence[Mapping[str, Any]], **settings: Any
) -> None:
    """Write the YAML and the data of a task, in a folder for --include-path."""
    folder.mkdir(exist_ok=True)
    files = {"test": write_lines(folder / f"{name}.jsonl", documents)}
    if "fewshot" in settings:
        files["fewshot"] = write_lines(folder / f"{name}-shots.jsonl", settings.pop("fewshot"))
        settings |= {"fewshot_split": "fewshot", "fewshot_config": {"sampler": "first_n"}}
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(path) for split, path in files.items()}},
        "test_split": "test",
        **settings,
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


def write_lines(path: Path, documents: Sequence[Mapping[str, Any]]) -> Path:
    """Write documents as .jsonl."""
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def write_quiz(folder: Path, name: str = "quiz", **settings: Any) -> None:
    """Write a task of questions with one right choice among several."""

    def rows(quiz: Sequence[tuple[str, list[str], int]]) -> list[dict[str, Any]]:
        return [{"question": q, "choices": c, "answer": a} for q, c, a in quiz]

    write_task(
        folder,
        name,
        rows(QUIZ),
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        fewshot=rows(SHOTS),
        metric_list=[
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
        **settings,
    )


def write_books(folder: Path, texts: Sequence[str] = BOOKS) -> None:
    """Write a task of texts whose perplexity is measured."""
    write_task(
        folder,
        "books",
        [{"page": text} for text in texts],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{page}}",
        metric_list=[
            {"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")
        ],
    )


def write_continuations(
    folder: Path, pairs: Sequence[tuple[str, str]], tokens: int = 6, **settings: Any
) -> None:
    """Write a task of prompts and the lines that should continue them."""
    write_task(
        folder,
        "continuations",
        [{"begin": begin, "end": end} for begin, end in pairs],
        output_type="generate_until",
        doc_to_text="{{begin}}",
        doc_to_target="{{end}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": tokens, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **settings,
    )
