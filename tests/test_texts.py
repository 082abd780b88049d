"""Samples are drawn from the whole text, each part of it equally likely, at bounded memory."""

import gzip
import json
import logging
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from minitron.text.corpus import load_corpus
from minitron.text.text_row import Text
from minitron.text.texts import draw_passages, draw_texts, split_text

SHARE = 0.9  # of the second source


class Letters:
    """A tokenizer whose tokens are characters."""

    eos_token_id = 7

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def sorted_sources() -> Iterator[str]:
    """A tenth of one source, then nine of another."""
    for number in range(1000):
        yield ("a" if number < 1000 * (1 - SHARE) else "b") * 19 + f" {number:03d}" + " word" * 20


def one_long_line(path: Path) -> None:
    path.write_text(" ".join(sorted_sources()))


def lines(path: Path) -> None:
    path.write_text("\n".join(sorted_sources()))


def rows(path: Path) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sorted_sources()))


def one_row(path: Path) -> None:
    path.write_bytes(gzip.compress(json.dumps({"text": " ".join(sorted_sources())}).encode()))


FILES = {
    "line.txt": one_long_line,
    "lines.txt": lines,
    "rows.jsonl": rows,
    "row.jsonl.gz": one_row,
}


@pytest.mark.parametrize("name", FILES)
def test_samples_come_from_all_over_a_file_in_its_shares(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / name)
    digests, shares = set(), []
    for seed in (0, 1, 2):
        drawn = [
            load_corpus(str(tmp_path / name), Letters(), seq_len=16, samples=1000, seed=seed)
            for _ in range(2)
        ]
        assert drawn[0].sequences.shape == (1000, 16)
        assert drawn[0].digest == drawn[1].digest  # the same seed
        digests.add(drawn[0].digest)
        first, second = ((drawn[0].sequences == ord(letter)).sum() for letter in "ab")
        shares.append(second / (first + second))
    assert len(digests) == len(shares)  # another seed, another draw
    assert abs(np.mean(shares) - SHARE) < 0.05


def test_every_character_is_drawn_equally_often() -> None:
    # Documents of very different lengths, the long ones cut.
    lengths = [5, 300, 40, 1, 170, 90]
    texts = [Text(chr(ord("A") + n) * length) for n, length in enumerate(lengths)]
    times = np.zeros(len(lengths))
    draws = 3000
    for seed in range(draws):
        passages = (passage for text in texts for passage in split_text(text, 20))
        drawn = draw_passages(passages, 150, seed)
        assert 150 <= sum(len(passage.text) + 4 for passage in drawn) < 150 + 44
        for passage in drawn:
            times[ord(passage.text[0]) - ord("A")] += len(passage.text)
    share = times / lengths / draws
    assert share.max() - share.min() < 0.06, share


def test_a_draw_of_more_than_there_is_takes_all() -> None:
    texts = [Text(letter) for letter in "abc "]
    assert sorted(text.text for text in draw_passages(texts, 1000, 0)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "text",
    ["word " * 100, "word\n" * 100, "x" * 500, "漢字\n" * 3 + "漢" * 300, "", "short", " " * 300],
)
def test_passages_are_the_text_in_pieces_of_bounded_length(text: str) -> None:
    pieces = [piece.text for piece in split_text(Text(text), 40)]
    assert "".join(pieces) == text
    assert all(40 <= len(piece) <= 80 for piece in pieces[:-1])
    assert len(pieces[-1]) <= 80


def test_cuts_are_at_line_ends_else_before_blanks() -> None:
    lines, words = Text("line of\n" * 40), Text("words and " * 40)
    assert {piece.text[-1] for piece in split_text(lines, 30)} == {"\n"}
    assert {piece.text[0] for piece in [*split_text(words, 30)][1:]} == {" "}


def test_a_draw_holds_no_more_than_it_needs(tmp_path: Path) -> None:
    # 12.8 MB in one line of which 65 kB are drawn.
    (tmp_path / "a.txt").write_text("some words here " * 800_000)
    tracemalloc.start()
    drawn = draw_texts(str(tmp_path / "a.txt"), Letters(), seq_len=64, samples=128, seed=0)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(len(text.text) for text in drawn) >= 65_000
    assert most < 6_000_000


class TestHub:
    @pytest.fixture(autouse=True)
    def dataset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = Dataset.from_dict({"text": list(sorted_sources())})
        monkeypatch.setattr(
            "datasets.load_dataset", lambda *_, **__: rows.to_iterable_dataset(num_shards=50)
        )

    def test_all_of_a_small_dataset_is_drawn_from(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        corpus = load_corpus("a/b", Letters(), seq_len=16, samples=200, seed=3)
        first, second = ((corpus.sequences == ord(letter)).sum() for letter in "ab")
        assert abs(second / (first + second) - SHARE) < 0.1
        assert caplog.text == ""

    def test_a_large_dataset_is_drawn_from_in_part_its_files_in_random_order(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caplog.set_level(logging.INFO)
        monkeypatch.setattr("minitron.text.texts.HUB_CHARACTERS", 30_000)
        shares = []
        for seed in range(6):
            corpus = load_corpus("a/b", Letters(), seq_len=16, samples=20, seed=seed)
            first, second = ((corpus.sequences == ord(letter)).sum() for letter in "ab")
            shares.append(second / (first + second))
        assert abs(np.mean(shares) - SHARE) < 0.1
        assert caplog.messages[0] == (
            "a/b is longer than 30,000 characters: samples are drawn from so many of "
            "them, with its files in random order"
        )
