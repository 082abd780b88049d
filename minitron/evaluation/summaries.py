"""Summaries: a model's summaries of articles, compared by ROUGE with those that people wrote.

Computes what TensorRT-LLM's examples/summarize.py computes, which the README of NVlabs/Minitron
runs: a prompt is an article and a suffix, truncated to a number of tokens, and the model continues
it by greedy decoding. Needs rouge-score, in the extra `evals`.

    summarize(read_articles("news.jsonl", settings), model, tokenizer, settings).metrics["rouge1"]
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from minitron.errors import (
    CorpusError,
    MissingExtraError,
    SourceError,
    TokenizerError,
    foreign_parser,
)
from minitron.evaluation.preset import SummarySettings
from minitron.files.hub_retry import bounded_waiting
from minitron.progress import Progress
from minitron.records.task_scores import TaskScores
from minitron.text.rows import file_rows

NAME = "cnn_dailymail"
ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_KINDS = (".jsonl", ".json", ".parquet")
_ARTICLE, _SUMMARY = "article", "highlights"  # columns, as the dataset on the Hub has them


@dataclass(frozen=True)
class Article:
    """A text and its summary by a person."""

    text: str
    summary: str


@dataclass(frozen=True)
class Articles:
    """The articles to summarize."""

    articles: Sequence[Article]
    limited: bool  # not all articles of the data
    dataset: SummarySettings | None = None  # on the Hub; None for a file


def read_articles(
    file: str | None, settings: SummarySettings, *, limit: int | None = None
) -> Articles:
    """Read the articles of a .jsonl or .parquet file (or .gz) with columns article and highlights.

    Without a file, reads the dataset on the Hub, shuffled with the seed of the settings. Raises
    MissingExtraError without rouge-score, CorpusError for articles that cannot be read.
    """
    if find_spec("rouge_score") is None:
        raise MissingExtraError("rouge-score", "evals")
    rows = _rows_of_file(file) if file is not None else _rows_of_hub(settings)
    wanted = limit if limit is not None or file is not None else settings.articles
    found: list[Article] = []
    for row in rows:
        if len(found) == wanted:
            break
        found.append(_article(row, file or settings.dataset))
    else:
        wanted = None
    if not found:
        raise CorpusError(f"{file or settings.dataset} holds no articles")
    if file is not None:
        return Articles(found, wanted is not None)
    return Articles(found, wanted is not None, settings)


def summarize(
    articles: Articles,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: SummarySettings,
    *,
    batch_size: int = 1,
) -> TaskScores:
    """Mean ROUGE of a model's summaries, and the tokens it generates a second.

    Raises SourceError for a context too short to summarize in, TokenizerError for a tokenizer of
    another model.
    """
    prompts = _prompts(articles.articles, tokenizer, settings, _prompt_length(model, settings))
    highest = max(max(prompt) for prompt in prompts)
    if highest >= model.config.vocab_size:
        raise TokenizerError(
            f"the tokenizer gives id {highest}, outside the model's vocabulary of "
            f"{model.config.vocab_size}: it belongs to another model"
        )
    ends = _end_ids(model, tokenizer)
    _generate(model, prompts[:batch_size], ends, 1)  # the first pass of a device is slow
    answers: list[list[int]] = []
    seconds = 0.0
    with Progress("summarize", total=len(prompts), unit="article") as progress:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            began = time.perf_counter()
            answers += _generate(model, batch, ends, settings.max_new_tokens)
            seconds += time.perf_counter() - began
            progress.advance(len(batch))
    hub = articles.dataset
    summaries = [str(tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers]
    return TaskScores(
        name=NAME,
        metrics=mean_rouge(summaries, [article.summary for article in articles.articles]),
        samples=len(summaries),
        num_fewshot=0,
        limited=articles.limited,
        dataset=None if hub is None else hub.dataset,
        config=None if hub is None else hub.config,
        split=None if hub is None else hub.split,
        made_by=f"rouge-score {version('rouge_score')}",
        tokens_per_second=sum(map(len, answers)) / seconds,
    )


def mean_rouge(summaries: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The mean F-measure over all summaries, 0 to 1, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGES), use_stemmer=False)
    scores = [scorer.score(r, s) for s, r in zip(summaries, references, strict=True)]
    return {name: sum(s[name].fmeasure for s in scores) / len(scores) for name in ROUGES}


def _prompts(
    articles: Sequence[Article],
    tokenizer: PreTrainedTokenizerBase,
    settings: SummarySettings,
    room: int,
) -> list[list[int]]:
    # The dataset has a space before "n't"; summarize.py removes it too.
    texts = [(a.text + settings.suffix).strip().replace(" n't", "n't") for a in articles]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [list(ids[:room]) for ids in encoded]


def _prompt_length(model: PreTrainedModel, settings: SummarySettings) -> int:
    """The tokens of a prompt: those of the settings, fewer if the context is shorter."""
    context = int(model.config.max_position_embeddings)
    room = min(settings.max_input_tokens, context - settings.max_new_tokens)
    if room < 1:
        raise SourceError(
            f"a summary has up to {settings.max_new_tokens} tokens, but the context is {context}: "
            "there is no room for an article"
        )
    return room


def _generate(
    model: PreTrainedModel, prompts: Sequence[list[int]], ends: list[int], tokens: int
) -> list[list[int]]:
    """The tokens that the model generates, up to the first end-of-sequence id."""
    width = max(map(len, prompts))
    pad = ends[0] if ends else 0
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    config = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=ends or None, pad_token_id=pad
    )
    with torch.inference_mode():
        made = model.generate(  # type: ignore[operator]  # mixed in without types
            ids, attention_mask=real.to(model.device), generation_config=config
        )
    return [_before_end(row, ends) for row in made[:, width:].tolist()]


def _before_end(ids: list[int], ends: list[int]) -> list[int]:
    for index, token in enumerate(ids):
        if token in ends:
            return ids[:index]
    return ids


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end generation."""
    own = model.generation_config
    end = own.eos_token_id if own is not None else None
    end = tokenizer.eos_token_id if end is None else end
    return end if isinstance(end, list) else [] if end is None else [int(end)]


def _rows_of_file(file: str) -> Iterator[dict[str, Any]]:
    if Path(file.removesuffix(".gz")).suffix not in _KINDS:
        raise CorpusError(f"--articles {file} is of no known kind: use .jsonl or .parquet (.gz)")
    for row in file_rows(file, [(_ARTICLE, _SUMMARY)]):
        yield row.columns


def _rows_of_hub(settings: SummarySettings) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset  # seconds to import

    what, remedy = f"the dataset {settings.dataset}", "give --articles a file"
    with foreign_parser(what, CorpusError, remedy), bounded_waiting():
        rows = load_dataset(settings.dataset, name=settings.config, split=settings.split)
        yield from rows if settings.shuffle_seed is None else rows.shuffle(settings.shuffle_seed)


def _article(row: Mapping[str, Any], name: str) -> Article:
    text, summary = row.get(_ARTICLE), row.get(_SUMMARY)
    if not isinstance(text, str) or not isinstance(summary, str) or not text.strip():
        raise CorpusError(
            f"{name} has a row without text under {_ARTICLE} and {_SUMMARY}, only "
            f"{', '.join(row)}: name its columns so"
        )
    return Article(text, summary)
