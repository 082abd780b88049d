"""Text becomes the sequences one would pack by hand, or one line that says why not."""

import gzip
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from minitron.errors import CorpusError
from minitron.text.corpus import Corpus, load_corpus, load_ids, random_corpus
from minitron.text.encoding import tokenize
from minitron.text.text_row import Text
from minitron.text.texts import read_texts
from tests.tiny import write_text

DOCUMENTS = ["It was the best of times.\n", "Ünïcode, too: 漢字\nand a second line", "a b"]


class Letters:
    """A tokenizer one can check by hand: each character is its code point; 7 ends a text."""

    eos_token_id: int | None = 7

    def __init__(self, eos_token_id: int | None = 7) -> None:
        self.eos_token_id = eos_token_id

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def read_documents(name: str) -> list[str]:
    return [text.text for text in read_texts(name, Letters())]


def ids_of(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def write_parquet(path: Path, documents: list[str]) -> Path:
    pq.write_table(pa.table({"number": range(len(documents)), "text": documents}), path)
    return path


def write_gzipped(path: Path, documents: list[str]) -> Path:
    plain = write_text(path.with_name(path.name.removesuffix(".gz")), documents)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return path


KINDS: dict[str, Callable[[Path, list[str]], Path]] = {
    "a.jsonl": write_text,
    "a.json": write_text,
    "a.jsonl.gz": write_gzipped,
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_row_is_a_document(name: str, tmp_path: Path) -> None:
    path = KINDS[name](tmp_path / name, DOCUMENTS)
    assert read_documents(str(path)) == DOCUMENTS


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_text_file_is_one_document_blank_lines_and_all(name: str, tmp_path: Path) -> None:
    text = "First.\n\n\n  Indented, ünïcode\r\nlast line without an end"
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read_documents(str(tmp_path / name)) == [text.replace("\r\n", "\n")]


def test_relative_paths_are_those_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "a.jsonl", ["here"])
    monkeypatch.chdir(tmp_path)
    assert read_documents("a.jsonl") == ["here"]


@pytest.mark.parametrize("eos", [7, None])
def test_documents_are_packed_one_behind_the_other_and_the_rest_is_dropped(
    eos: int | None, tmp_path: Path
) -> None:
    path = write_text(tmp_path / "a.jsonl", ["abcd", "efg", "hi"])
    corpus = load_corpus(str(path), Letters(eos), seq_len=5)
    by_hand = {
        7: [[*ids_of("abcd"), 7], [*ids_of("efg"), 7, ord("h")]],  # and i, 7 are dropped
        None: [ids_of("abcde")],  # and f, g, h, i are dropped
    }
    assert corpus.sequences.tolist() == by_hand[eos]
    assert corpus.sequences.dtype == np.int32
    assert corpus.tokens == 5 * len(by_hand[eos])
    assert corpus.name == str(path)


def test_blank_documents_are_left_out(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.jsonl", ["", "ab", "  \n", "c"])
    corpus = load_corpus(str(path), Letters(), seq_len=5)
    assert corpus.sequences.tolist() == [[ord("a"), ord("b"), 7, ord("c"), 7]]


def test_many_batches_of_text_give_what_one_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_text(tmp_path / "a.jsonl", [f"document {number}" for number in range(23)])
    whole = load_corpus(str(path), Letters(), seq_len=11)
    monkeypatch.setattr("minitron.text.encoding._BATCH_CHARACTERS", 30)
    assert np.array_equal(load_corpus(str(path), Letters(), seq_len=11).sequences, whole.sequences)


def test_a_document_knows_its_bytes() -> None:
    (document,) = tokenize([Text("é漢")], Letters())
    assert document.ids.tolist() == [ord("é"), ord("漢"), 7]
    assert document.bytes == 5


class TestSamples:
    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        lines = [f"{number:04d} " + "text " * 7 + "\n" for number in range(400)]
        (tmp_path / "a.txt").write_text("".join(lines))
        return str(tmp_path / "a.txt")

    def test_as_many_are_drawn_as_are_asked_for(self, path: str) -> None:
        assert load_corpus(path, Letters(), seq_len=13, samples=9).sequences.shape == (9, 13)

    def test_the_same_seed_draws_the_same(self, path: str) -> None:
        one, other = (load_corpus(path, Letters(), seq_len=13, samples=9, seed=4) for _ in range(2))
        assert np.array_equal(one.sequences, other.sequences)

    def test_another_seed_draws_others(self, path: str) -> None:
        digests = {
            load_corpus(path, Letters(), seq_len=13, samples=9, seed=seed).digest
            for seed in range(5)
        }
        assert len(digests) == 5

    def test_they_are_text_of_the_corpus_from_all_over_it(self, path: str) -> None:
        text = Path(path).read_text()
        sequences = load_corpus(path, Letters(), seq_len=13, samples=200, seed=1).sequences
        for row in sequences.tolist():
            for part in "".join(map(chr, row)).split("\x07"):
                assert part in text
        drawn = "".join(map(chr, sequences.flatten().tolist()))
        lines = [int(number) for number in re.findall(r"\d{4}", drawn)]
        assert max(lines) - min(lines) > 200

    def test_where_there_are_fewer_all_are_taken(self, tmp_path: Path) -> None:
        path = write_text(tmp_path / "a.jsonl", ["abcdefgh"])
        corpus = load_corpus(str(path), Letters(), seq_len=3, samples=50)
        assert corpus.sequences.shape == (3, 3)


class TestDigest:
    rows = np.arange(12, dtype=np.int32).reshape(3, 4)

    def test_it_is_the_sha256_of_shape_and_ids(self) -> None:
        by_hand = b"(3, 4)" + b"".join(number.to_bytes(4, "little") for number in range(12))
        assert Corpus(self.rows, "a").digest == hashlib.sha256(by_hand).hexdigest()

    def test_it_differs_by_ids_and_shapes_but_not_by_names(self) -> None:
        changed = self.rows.copy()
        changed[2, 3] += 1
        digest = Corpus(self.rows, "a").digest
        assert Corpus(self.rows, "b").digest == digest
        assert Corpus(np.asfortranarray(self.rows), "b").digest == digest
        assert Corpus(changed, "a").digest != digest
        assert Corpus(self.rows.reshape(4, 3), "a").digest != digest


class TestIds:
    @pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16, np.uint8, ">i4"])
    def test_every_row_is_a_sequence(self, dtype: Any, tmp_path: Path) -> None:
        rows = np.arange(15).reshape(3, 5)
        np.save(tmp_path / "a.npy", rows.astype(dtype))
        corpus = load_ids(str(tmp_path / "a.npy"), seq_len=9)
        assert corpus.sequences.dtype == np.int32
        assert np.array_equal(corpus.sequences, rows)

    def test_rows_are_cut_in_length_and_number(self, tmp_path: Path) -> None:
        rows = np.arange(15).reshape(3, 5)
        np.save(tmp_path / "a.npy", np.asfortranarray(rows))
        corpus = load_ids(str(tmp_path / "a.npy"), seq_len=4, samples=2)
        assert np.array_equal(corpus.sequences, rows[:2, :4])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (np.arange(5), r"int64 of shape \(5,\): it must hold whole numbers \[samples, length"),
            (np.ones((2, 3)), r"float64 of shape \(2, 3\): it must hold whole numbers"),
            (np.zeros((0, 3), int), r"int64 of shape \(0, 3\): it must hold whole numbers"),
            (np.zeros((3, 0), int), r"int64 of shape \(3, 0\): it must hold whole numbers"),
            (np.array([[1, -2]]), "holds -2 to 1: those are not token ids"),
            (np.array([[1, 2**31]]), "holds 1 to 2147483648: those are not token ids"),
            (np.array([[1, 2**64 - 1]], np.uint64), "those are not token ids"),
            (np.array([["a"]]), "must hold whole numbers"),
            (np.array([[True]]), "bool of shape .* must hold whole numbers"),
        ],
        ids=str,
    )
    def test_what_are_no_ids_is_refused(
        self, content: np.ndarray[Any, Any], message: str, tmp_path: Path
    ) -> None:
        np.save(tmp_path / "a.npy", content)
        with pytest.raises(CorpusError, match=rf"a.npy (holds )?.*{message}"):
            load_ids(str(tmp_path / "a.npy"), seq_len=4)

    def test_a_pickle_is_never_run(self, tmp_path: Path) -> None:
        class Hostile:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "was run",)

        np.save(tmp_path / "a.npy", np.array([[Hostile()]], dtype=object), allow_pickle=True)
        with pytest.raises(CorpusError, match="a.npy holds Python objects, which are not"):
            load_ids(str(tmp_path / "a.npy"), seq_len=4)
        assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]

    def test_several_arrays_are_refused(self, tmp_path: Path) -> None:
        with (tmp_path / "a.npy").open("wb") as file:
            np.savez(file, one=np.ones((2, 3), int))
        with pytest.raises(CorpusError, match="a.npy is an .npz of several arrays: save one with"):
            load_ids(str(tmp_path / "a.npy"), seq_len=4)

    def test_a_truncated_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npy"
        np.save(path, np.ones((50, 30), int))
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(CorpusError, match="claims 12,000 bytes of shape .* and 11,992 follow"):
            load_ids(str(path), seq_len=4)

    @pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01", b"plain text"])
    def test_what_is_no_npy_is_refused(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(CorpusError, match="a.npy (is not a .npy|cannot be read: .*): save an"):
            load_ids(str(tmp_path / "a.npy"), seq_len=4)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CorpusError, match="a.npy does not exist"):
            load_ids(str(tmp_path / "a.npy"), seq_len=4)


@pytest.mark.parametrize(("low", "high", "seen"), [(0, 101, 101), (-1, 5, -1), (-3, 200, -3)])
def test_ids_outside_the_vocabulary_are_named(low: int, high: int, seen: int) -> None:
    corpus = Corpus(np.array([[1, low], [high, 2]], np.int32), "a.npy")
    with pytest.raises(CorpusError, match=f"a.npy holds token id {seen}, outside .* of 101: was"):
        corpus.check_fits(101)


def test_the_last_id_of_the_vocabulary_fits() -> None:
    Corpus(np.array([[0, 100]], np.int32), "a").check_fits(101)


def test_random_ids_cover_the_vocabulary_and_follow_their_seed() -> None:
    one = random_corpus(23, seq_len=31, samples=37, seed=5)
    assert one.sequences.shape == (37, 31)
    assert np.array_equal(np.unique(one.sequences), np.arange(23))
    assert random_corpus(23, seq_len=31, samples=37, seed=5).digest == one.digest
    assert random_corpus(23, seq_len=31, samples=37, seed=6).digest != one.digest


TEXT = gzip.compress(b'{"text": "It was the best of times"}\n' * 300, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"body": "x"}\n',
            "line 1 has no text: its columns are body: name the one",
        ),
        ("a.jsonl", b'{"text": 7}\n', "line 1 has 7 as text: it must hold text: correct or"),
        ("a.jsonl", b'{"text": null}\n', "line 1 has None as text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 5}\n', "line 2 has 5 as text: it must hold"),
        (
            "a.jsonl",
            b'{"text": "x"}\nnot json\n',
            "line 2 is not JSON: Expecting value ",
        ),
        ("a.jsonl.gz", TEXT[: len(TEXT) // 2], "cannot be read: Compressed file ended"),
        ("a.jsonl.gz", TEXT[:20] + b"\x55\xaa\xff" + TEXT[23:], "cannot be read: Error -3"),
        ("a.jsonl.gz", b'{"text": "x"}\n', "cannot be read: Not a gzipped file"),
        ("a.txt", b"a\xff\xfe", "is not UTF-8 text: at byte 1 it holds ff fe .*: save it as UTF-8"),
        ("a.parquet", b"PAR1 not really", "cannot be read: Parquet magic bytes not found"),
        ("a.csv", b"text\nx\n", "is of an unknown kind: use .txt, .jsonl, .parquet"),
        ("a", b"x", "is of an unknown kind: use .txt, .jsonl, .parquet"),
        ("a.txt", b"", "holds 0 tokens, fewer than one sequence of 4: give more text or a"),
        ("a.txt", b" \n\n ", "holds 0 tokens, fewer than one sequence of 4"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "holds 0 tokens, fewer than one sequence of 4"),
        ("a.jsonl", b"", "holds 0 tokens, fewer than one sequence of 4"),
        ("a.jsonl", b'{"text": ""}\n', "holds 0 tokens, fewer than one sequence of 4"),
        (
            "a.txt",
            b"ab",
            "holds 3 tokens, fewer than one sequence of 4: give more text or a smaller",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("samples", [None, 2])
def test_what_is_no_text_is_refused_in_one_line(
    name: str, content: bytes, message: str, samples: int | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=rf"{name},? .*{message}") as raised:
        load_corpus(str(tmp_path / name), Letters(), seq_len=4, samples=samples)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [".txt", ".jsonl.gz", ".parquet"])
def test_a_missing_file_is_named(kind: str, tmp_path: Path) -> None:
    name = str(tmp_path / f"absent{kind}")
    with pytest.raises(CorpusError, match=rf"^{name} does not exist$"):
        read_documents(name)


def test_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=rf"{tmp_path} is a folder: name a .txt, .jsonl, .parquet"
    ):
        read_documents(str(tmp_path))


@pytest.mark.parametrize("name", ["no-such-file", "nobody/nothing", "nobody/nothing:part:test"])
def test_a_data_set_that_cannot_be_reached_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CorpusError,
        match=rf"{name} cannot be read: .*: it is not a file here: name a file, or a",
    ) as raised:
        read_documents(name)
    assert "\n" not in str(raised.value)


def test_a_data_set_is_asked_for_by_name_part_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, part: str | None, *, split: str, streaming: bool) -> Any:
        asked.append((name, part, split, streaming))
        return Dataset.from_list([{"text": "row"}]).to_iterable_dataset()

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for name in ("a/b", "a/b:c", "a/b:c:test", "a/b::valid"):
        assert read_documents(name) == ["row"]
    assert asked == [
        ("a/b", None, "train", True),
        ("a/b", "c", "train", True),
        ("a/b", "c", "test", True),
        ("a/b", None, "valid", True),
    ]


def test_json_escapes_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "\u6f22\t\U0001f600"}) + "\n")
    assert read_documents(str(tmp_path / "a.jsonl")) == ["漢\t😀"]


@pytest.mark.parametrize("name", ["self", "random"])
def test_what_a_model_makes_is_refused_where_text_is_read(name: str) -> None:
    with pytest.raises(CorpusError, match=f"^{name} cannot be given here, where text is read: "):
        read_documents(name)
