"""lm-eval, driven by us, scores what a plain loop over the model scores, on data of one's own."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import minitron
from minitron.cli import main
from minitron.errors import CorpusError, MissingExtraError, SourceError, TargetError
from minitron.evaluation.task_harness import load_tasks, run_tasks
from minitron.sources.loading import load_model, load_tokenizer
from minitron.sources.opening import open_source
from tests.task_folders import (
    BOOKS,
    QUIZ,
    SHOTS,
    write_books,
    write_continuations,
    write_quiz,
    write_task,
)

pytest.importorskip("lm_eval")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data of tasks kept away from the user's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_model(open_source("tiny"), dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(open_source("tiny"))


def log_likelihood(model: PreTrainedModel, ids: list[int], first: int) -> float:
    """Of ids[first:], each token from all before it."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    chosen = logits.log_softmax(-1)[torch.arange(first - 1, len(ids) - 1), ids[first:]]
    return float(chosen.sum())


def by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, shots: int
) -> tuple[float, float]:
    """acc and acc_norm of the quiz, one choice after the other."""
    before = "".join(f"{q} {choices[answer]}\n\n" for q, choices, answer in SHOTS[:shots])
    right, right_by_length = 0, 0
    for question, choices, answer in QUIZ:
        context = tokenizer.encode(before + question)
        scores = []
        for choice in choices:
            whole = tokenizer.encode(f"{before}{question} {choice}")
            scores.append(log_likelihood(model, whole, len(context)))
        right += int(np.argmax(scores)) == answer
        by_length = [s / len(c) for s, c in zip(scores, choices, strict=True)]
        right_by_length += int(np.argmax(by_length)) == answer
    return right / len(QUIZ), right_by_length / len(QUIZ)


@pytest.mark.parametrize("shots", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_quiz_scores_what_a_plain_loop_counts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    shots: int,
    batch_size: int,
    tmp_path: Path,
) -> None:
    write_quiz(tmp_path / "tasks")
    tasks = load_tasks({"quiz": shots}, include_path=str(tmp_path / "tasks"))
    scored = run_tasks(tasks, model, tokenizer, batch_size=batch_size)["quiz"]
    acc, acc_norm = by_hand(model, tokenizer, shots)
    assert scored.metrics == {"acc": acc, "acc_norm": acc_norm}
    assert (scored.samples, scored.num_fewshot, scored.limited) == (len(QUIZ), shots, False)
    spread = math.sqrt(acc * (1 - acc) / (len(QUIZ) - 1))
    assert scored.errors["acc"] == pytest.approx(spread)
    assert scored.dataset is None


def test_the_quiz_distinguishes_examples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    # Else the test before could not fail.
    assert len({by_hand(model, tokenizer, shots)[0] for shots in (0, 1, 3)}) == 3


def test_a_limit_asks_the_first_documents_only(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    write_quiz(tmp_path / "tasks")
    tasks = load_tasks({"quiz": None}, limit=2, include_path=str(tmp_path / "tasks"))
    scored = run_tasks(tasks, model, tokenizer)["quiz"]
    assert (scored.samples, scored.limited, scored.num_fewshot) == (2, True, 0)


@pytest.mark.parametrize("max_length", [None, 5])
def test_texts_score_the_bits_of_a_plain_loop(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    tmp_path: Path,
) -> None:
    write_books(tmp_path / "tasks")
    tasks = load_tasks({"books": None}, include_path=str(tmp_path / "tasks"))
    scored = run_tasks(tasks, model, tokenizer, max_length=max_length)["books"]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    nats = 0.0
    for text in BOOKS:
        ids = tokenizer.encode(text)
        width = max_length or len(ids)
        # The first window begins after the start token; a later one predicts the next `width`
        # tokens, and the last one as many as are left, from as much as fits before them.
        nats -= log_likelihood(model, [start, *ids[:width]], 1)
        for begin in range(width, len(ids), width):
            end = min(begin + width, len(ids))
            seen = ids[end - width - 1 : end]
            nats -= log_likelihood(model, seen, len(seen) - (end - begin))
    size = sum(len(text.encode()) for text in BOOKS)
    assert scored.metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert scored.metrics["byte_perplexity"] == pytest.approx(math.exp(nats / size), rel=1e-5)


def greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, tokens: int
) -> str:
    ids = tokenizer.encode(text)
    generated: list[int] = []
    for _ in range(tokens):
        with torch.no_grad():
            generated.append(int(model(torch.tensor([ids + generated])).logits[0, -1].argmax()))
        if generated[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(generated, skip_special_tokens=True)).split("\n")[0]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_continuations_match_what_a_greedy_loop_says(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, tmp_path: Path
) -> None:
    begins = ["It was the best of", "The captain looked at the", "My dear, I am"]
    generated = [greedy(model, tokenizer, begin, 6) for begin in begins]
    assert all(generated)
    pairs = [(begins[0], generated[0]), (begins[1], generated[1] + "!"), (begins[2], generated[2])]
    write_continuations(tmp_path / "tasks", pairs)
    tasks = load_tasks({"continuations": None}, include_path=str(tmp_path / "tasks"))
    scored = run_tasks(tasks, model, tokenizer, batch_size=batch_size)["continuations"]
    assert scored.metrics == {"exact_match": pytest.approx(2 / 3)}


def test_a_group_is_shown_as_its_mean_and_a_tag_as_its_tasks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    for name in ("quiz_a", "quiz_b"):
        write_quiz(folder, name, tag="quizzes")
    (folder / "both.yaml").write_text(
        "group: both\ntask: [quiz_a, quiz_b]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    tasks = load_tasks({"both": 1}, include_path=str(folder))
    scored = run_tasks(tasks, model, tokenizer)
    assert scored.keys() == {"both"}
    assert scored["both"].metrics == {"acc": pytest.approx(by_hand(model, tokenizer, 1)[0])}
    assert (scored["both"].samples, scored["both"].num_fewshot) == (2 * len(QUIZ), 1)
    tagged = run_tasks(load_tasks({"quizzes": 0}, include_path=str(folder)), model, tokenizer)
    assert tagged.keys() == {"quiz_a", "quiz_b"}


def test_a_task_that_holds_its_own_examples_gets_no_others(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    write_quiz(tmp_path / "tasks", num_fewshot=0)
    tasks = load_tasks({"quiz": 3}, include_path=str(tmp_path / "tasks"))
    scored = run_tasks(tasks, model, tokenizer)["quiz"]
    assert scored.num_fewshot == 0
    assert scored.metrics["acc"] == by_hand(model, tokenizer, 0)[0]


def test_a_task_can_be_named_by_its_file(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    write_quiz(tmp_path / "tasks")
    tasks = load_tasks({str(tmp_path / "tasks" / "quiz.yaml"): 1})
    assert run_tasks(tasks, model, tokenizer).keys() == {"quiz"}


def test_a_name_that_is_no_task_is_refused_with_those_near_it() -> None:
    with pytest.raises(TargetError, match="names helaswag, which lm-eval does not have; near it"):
        load_tasks({"helaswag": None})


def test_data_that_is_not_here_is_refused_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(CorpusError, match="the data of winogrande cannot be loaded") as caught:
        load_tasks({"winogrande": 5})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["coder", "coders"])
def test_a_task_that_runs_generated_code_must_be_allowed(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    write_task(folder, "coder", [{"a": "b"}], unsafe_code=True, doc_to_text="x", doc_to_target="y")
    (folder / "group.yaml").write_text("group: coders\ntask: [coder]\n")
    with pytest.raises(TargetError, match="coder runs the code that the model writes, on this ma"):
        load_tasks({name: None}, include_path=str(folder))


def test_humaneval_is_known_to_run_generated_code() -> None:
    with pytest.raises(TargetError, match="humaneval runs the code that the model writes"):
        load_tasks({"humaneval": 0})


def test_a_template_that_does_not_fit_its_data_is_refused(tmp_path: Path) -> None:
    write_task(
        tmp_path / "tasks", "odd", [{"a": "b"}], output_type="generate_until",
        doc_to_text="{{nothing}}", doc_to_target="{{a}}",
    )  # fmt: skip
    with pytest.raises(TargetError, match="task odd cannot be made: 'nothing' is undefined"):
        load_tasks({"odd": None}, include_path=str(tmp_path / "tasks"))


def test_a_damaged_file_of_tasks_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("task: [")
    with pytest.raises(TargetError, match=r"a\.yaml is no task: "):
        load_tasks({"a": None}, include_path=str(tmp_path))
    with pytest.raises(TargetError, match="nowhere is no folder"):
        load_tasks({"a": None}, include_path="nowhere")


def test_an_answer_longer_than_the_context_is_refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    write_continuations(tmp_path / "tasks", [("a", "b")], tokens=64)
    tasks = load_tasks({"continuations": None}, include_path=str(tmp_path / "tasks"))
    with pytest.raises(SourceError, match="continuations generates up to 64 tokens, but the con"):
        run_tasks(tasks, model, tokenizer, max_length=64)


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minitron.evaluation.task_harness.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"lm-eval is not installed: pip install 'minitron"):
        minitron.evaluate("tiny", tasks="hellaswag")


def test_the_command_line_prints_tasks_and_text_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_quiz(tmp_path / "tasks")
    (tmp_path / "a.txt").write_text("It was the best of times.")
    main(
        ["evaluate", "tiny", "--tasks", "quiz", "--include-path", str(tmp_path / "tasks"),
         "--num-fewshot", "1", "--limit", "3", "--corpus", str(tmp_path / "a.txt")]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "bits_per_byte" in printed
    assert "acc_norm" in printed


def test_evaluating_text_imports_no_lm_eval(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("It was the best of times.")
    check = (
        "import sys, minitron\nminitron.evaluate('tiny', corpus=sys.argv[1])\n"
        "assert not {'lm_eval', 'rouge_score', 'nltk', 'sklearn'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", check, str(tmp_path / "a.txt")], check=True)


def any_source(kind: str, tmp_path: Path) -> str:
    if kind == "zoo":
        return "tiny"
    out = tmp_path / ("tiny.nemo" if kind == "nemo" else "copy")
    minitron.convert("tiny", str(out), to="nemo" if kind == "nemo" else "hub")
    return str(out)


@pytest.mark.parametrize("kind", ["zoo", "folder", "nemo"])
def test_every_kind_of_source_scores_the_same(kind: str, tmp_path: Path) -> None:
    write_quiz(tmp_path / "tasks")
    options: dict[str, Any] = {"tasks": "quiz", "include_path": str(tmp_path / "tasks")}
    scored = minitron.evaluate(any_source(kind, tmp_path), num_fewshot=1, **options)
    zoo = minitron.evaluate("tiny", num_fewshot=1, **options)
    assert scored.tasks["quiz"].metrics == zoo.tasks["quiz"].metrics
    assert scored.loss is None
    assert scored.to_json()["loss"] is None


@pytest.mark.parametrize("content", [b"a\0b", b"\xff\xfe", b"task: [1", b"x: 1", b"- 1", b""])
def test_a_file_that_is_no_task_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_bytes(content)
    with pytest.raises(TargetError, match="task.yaml cannot be read: .*: write a task as lm-eval"):
        minitron.evaluate("tiny", tasks=str(path))
