"""Summaries are a greedy continuation of article and suffix, and ROUGE is rouge-score's."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import minitron
from minitron.cli import main
from minitron.errors import CorpusError, MissingExtraError, SourceError, TargetError
from minitron.evaluation.preset import SummarySettings, read_preset
from minitron.evaluation.summaries import mean_rouge, read_articles, summarize
from minitron.sources.loading import load_model, load_tokenizer
from minitron.sources.opening import open_source
from tests.task_folders import write_lines

pytest.importorskip("rouge_score")
NEWS = [
    {"article": "The king did n't come. " * 9, "highlights": "The king was away.\nNobody came."},
    {"article": "A ship", "highlights": "a ship , the sea and the captain"},
    {"article": "She went to the house of her mother and said", "highlights": "I am not"},
]


def settings() -> SummarySettings:
    found = read_preset("cnn_dailymail").summaries
    assert found is not None
    return replace(found, max_input_tokens=40, max_new_tokens=12)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_model(open_source("tiny"), dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(open_source("tiny"))


def greedy(model: PreTrainedModel, ids: list[int], tokens: int, end: int) -> list[int]:
    generated: list[int] = []
    while len(generated) < tokens:
        with torch.no_grad():
            token = int(model(torch.tensor([ids + generated])).logits[0, -1].argmax())
        if token == end:
            break
        generated.append(token)
    return generated


def overlap(summaries: list[str], written: list[str]) -> float:
    """ROUGE-1 of words without repetitions, counted by hand."""
    shared = len(set(summaries) & set(written))
    return 2 * shared / (len(summaries) + len(written))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_summaries_are_what_a_greedy_loop_says(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, tmp_path: Path
) -> None:
    summaries = []
    for row in NEWS:
        text = (row["article"] + " TL;DR: ").strip().replace(" n't", "n't")
        ids = tokenizer.encode(text, add_special_tokens=False)[:40]
        assert tokenizer.eos_token_id is not None
        generated = greedy(model, ids, 12, tokenizer.eos_token_id)
        summaries.append(tokenizer.decode(generated, skip_special_tokens=True))
    articles = read_articles(str(write_lines(tmp_path / "news.jsonl", NEWS)), settings())
    scored = summarize(articles, model, tokenizer, settings(), batch_size=batch_size)
    assert scored.metrics == mean_rouge(summaries, [row["highlights"] for row in NEWS])
    assert (scored.name, scored.samples, scored.limited) == ("cnn_dailymail", 3, False)
    assert scored.tokens_per_second is not None
    assert scored.tokens_per_second > 0


def test_rouge_is_the_mean_of_what_one_counts_by_hand() -> None:
    summaries = ["the cat sat on a mat", "no word"]
    written = ["a cat sat there", "of these"]
    expected = overlap(summaries[0].split(), written[0].split()) / 2
    assert mean_rouge(summaries, written)["rouge1"] == pytest.approx(expected)
    assert mean_rouge(summaries, written)["rouge2"] == pytest.approx(2 * 1 / (5 + 3) / 2)
    assert mean_rouge(["a b\nc d"], ["a b\nc d"]) == dict.fromkeys(
        ("rouge1", "rouge2", "rougeL", "rougeLsum"), 1.0
    )


@pytest.mark.parametrize(
    ("limit", "samples", "limited"), [(None, 3, False), (2, 2, True), (3, 3, False)]
)
def test_a_limit_takes_the_first_articles(
    limit: int | None, samples: int, limited: bool, tmp_path: Path
) -> None:
    path = tmp_path / "news.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in NEWS).encode()))
    articles = read_articles(str(path), settings(), limit=limit)
    assert (len(articles.articles), articles.limited) == (samples, limited)
    assert articles.articles[0].summary == NEWS[0]["highlights"]


def test_the_command_prints_rouge_and_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "news.jsonl", NEWS[:1])
    main(["evaluate", "tiny", "--preset", "cnn_dailymail", "--articles", str(path), "--json"])
    scores = json.loads(capsys.readouterr().out)["tasks"]["cnn_dailymail"]
    assert {"rouge1", "rouge2", "rougeL", "rougeLsum", "tokens_per_second"} < scores.keys()
    assert scores["samples"] == 1


def test_a_context_without_room_for_an_article_is_refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    articles = read_articles(str(write_lines(tmp_path / "news.jsonl", NEWS)), settings())
    with pytest.raises(SourceError, match="a summary has up to 512 tokens, but the context is 512"):
        summarize(articles, model, tokenizer, replace(settings(), max_new_tokens=512))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no articles"),
        ([{"text": "a"}], "has a row without text under article and highlights, only text"),
        ([{"article": " ", "highlights": "a"}], "has a row without text"),
    ],
)
def test_articles_that_are_none_are_refused(
    rows: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match=message):
        read_articles(str(write_lines(tmp_path / "news.jsonl", rows)), settings())


def test_a_file_that_is_not_there_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="^nowhere.jsonl does not exist"):
        read_articles("nowhere.jsonl", settings())
    (tmp_path / "a.csv").write_text("article,highlights\n")
    with pytest.raises(CorpusError, match="is of no known kind: use .jsonl or .parquet"):
        read_articles(str(tmp_path / "a.csv"), settings())


def test_the_hubs_articles_are_refused_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CorpusError,
        match="the dataset abisee/cnn_dailymail cannot be read: ",
    ):
        read_articles(None, settings())


def test_without_rouge_score_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minitron.evaluation.summaries.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="rouge-score is not installed"):
        minitron.evaluate("tiny", preset="cnn_dailymail")


def test_articles_without_their_preset_are_refused() -> None:
    with pytest.raises(TargetError, match="--articles is for --preset cnn_dailymail"):
        minitron.evaluate("tiny", articles="news.jsonl", corpus="a.txt")
