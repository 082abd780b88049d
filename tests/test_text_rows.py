"""Rows of any file become the text that people mean, or one line that names the row."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from minitron.errors import CorpusError
from minitron.text.corpus import held_out_text, load_corpus
from minitron.text.text_row import TableRow, text_of_row
from minitron.text.texts import read_texts
from tests.tiny import zoo_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|endoftext|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if tools %}tools {{ tools | tojson }}{% endif %}"
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who was it?"},
    {"role": "assistant", "content": "Dickens, 漢字."},
]
OTHER_CHAT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Who was it?"},
    {"from": "gpt", "value": "Dickens, 漢字."},
]
TEMPLATED = (
    "<|endoftext|>system: Be brief.\n<|endoftext|>user: Who was it?\n"
    "<|endoftext|>assistant: Dickens, 漢字.\n"
)
JOINED = "Be brief.\nWho was it?\nDickens, 漢字."
# A row, its text with a chat template, and without one.
ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "text": ({"text": "It was"}, "It was", "It was"),
    "content": ({"content": "It was"}, "It was", "It was"),
    "messages": ({"messages": CHAT}, TEMPLATED, JOINED),
    "conversations": ({"conversations": OTHER_CHAT}, TEMPLATED, JOINED),
    "completed": ({"prompt": "It", "completion": " was"}, "It was", "It was"),
    "completed chat": ({"prompt": CHAT[:2], "completion": CHAT[2:]}, TEMPLATED, JOINED),
    "text of a chat": ({"messages": CHAT, "text": "It was"}, "It was", "It was"),
    "columns of a chat": (
        {"messages": {key: [message[key] for message in CHAT] for key in ("role", "content")}},
        TEMPLATED,
        JOINED,
    ),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]}]},
        "<|endoftext|>user: ab\n",
        "ab",
    ),
}


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    found = zoo_tokenizer()
    found.chat_template = template
    return found


def as_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def as_gzipped(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return str(path)


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist([{"number": 1, **row} for row in rows]), path)
    return str(path)


def as_array(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows, indent=1))
    return str(path)


def as_data(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps({"version": 1, "data": rows}))
    return str(path)


KINDS: dict[str, Callable[[Path, list[dict[str, Any]]], str]] = {
    "a.jsonl": as_lines,
    "a.jsonl.gz": as_gzipped,
    "a.parquet": as_parquet,
    "a.json": as_array,
    "data.json": as_data,
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind_of_file_become_their_text(kind: str, tmp_path: Path) -> None:
    is_quick = kind != "a.parquet"  # whose reader is a process
    for row, templated, joined in list(ROWS.values())[:: 1 if is_quick else 2]:
        name = KINDS[kind](tmp_path / kind, [row, row])
        assert [text.text for text in read_texts(name, tokenizer())] == [templated] * 2
        if is_quick:
            assert [text.text for text in read_texts(name, tokenizer(None))] == [joined] * 2


def test_rows_of_a_hub_dataset_become_their_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for row, templated, _ in ROWS.values():
        rows = Dataset.from_list([{"number": 1, **row}] * 2).to_iterable_dataset()
        monkeypatch.setattr("datasets.load_dataset", lambda *_, found=rows, **__: found)
        found = read_texts("owner/name", tokenizer())
        assert [text.text for text in found] == [templated, templated]


def test_messages_that_a_table_fills_up_with_none_are_as_they_were_written() -> None:
    call = {"function": {"name": "look", "arguments": {"at": 3}}}
    chat = [
        {"role": "user", "content": "Look.", "tool_calls": None, "name": None},
        {"role": "assistant", "content": None, "tool_calls": [{**call, "id": None}]},
    ]
    template = "{% for m in messages %}{{ m | tojson }}\n{% endfor %}{{ tools | tojson }}"
    tools = [{"type": "function", "function": {"name": "look", "strict": None}}]
    for given in (tools, json.dumps(tools)):
        row = TableRow("row 1", {"messages": chat, "tools": given})
        lines = text_of_row(row, tokenizer(template)).text.splitlines()
        assert json.loads(lines[0]) == {"role": "user", "content": "Look."}
        answer = json.loads(lines[1])
        assert (answer["tool_calls"], answer.get("content")) == ([call], None)
        assert json.loads(lines[2])[0]["function"]["name"] == "look"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": "x", "id": 3}, "a has no text: its columns are body, id: name the one to read"),
        ({"prompt": "x"}, "a has no text: its columns are prompt: .* prompt and completion"),
        ({"text": None, "messages": CHAT}, "a has None as text: it must hold text"),
        ({"content": ["x"]}, r"a has \['x'\] as content"),
        ({"text": "x\ud83d"}, r"a has half a character \(\\ud83d\) in text: correct or remove it"),
        ({"messages": []}, r"a has \[\] as messages: it must be a list of messages"),
        ({"messages": "hello"}, "a has 'hello' as messages: it must be a list"),
        ({"messages": ["hello"]}, "a, message 1 is 'hello', no role and content"),
        ({"messages": [*CHAT, {"role": "user"}]}, "a, message 4 has no content"),
        ({"messages": [{"content": "x"}]}, "a, message 1 has None as from: it must name who"),
        ({"messages": [{"role": 3, "content": "x"}]}, "a, message 1 has 3 as role"),
        ({"messages": [{"from": "user", "content": {}, "tool_calls": [1]}]}, "a, .* as content"),
        ({"conversations": [{"from": "owl", "value": "x"}]}, "a, message 1 has 'owl' as from"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
            "a, message 1 has a part of type 'image': only text can be read",
        ),
        ({"prompt": "x", "completion": CHAT}, r"a has \[.* as completion: it must hold text"),
        ({"messages": CHAT, "tools": "{"}, "a, tools cannot be read: .*: correct or remove it"),
        ({"messages": CHAT, "tools": 5}, "a has 5 as tools: it must be a list"),
    ],
    ids=str,
)
def test_a_row_without_text_is_named_in_one_line(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(CorpusError, match=f"^{message}"):
        text_of_row(TableRow("a", columns), tokenizer())


def test_a_chat_that_its_template_refuses_is_named() -> None:
    alternating = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(CorpusError, match="line 7: its chat cannot be read: roles must alternate"):
        text_of_row(TableRow("a.jsonl, line 7", {"messages": CHAT}), tokenizer(alternating))


@pytest.mark.parametrize(
    "columns",
    [
        {"messages": CHAT, "tools": [{"name": "look"}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": 1}]}]},
    ],
)
def test_tools_without_a_chat_template_are_refused(columns: dict[str, Any]) -> None:
    row = TableRow("a", columns)
    with pytest.raises(CorpusError, match="a calls tools, which only a chat template can write"):
        text_of_row(row, tokenizer(None))


def test_chats_without_a_chat_template_are_logged_once_as_joined(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    name = as_lines(tmp_path / "a.jsonl", [{"messages": CHAT}] * 3)
    assert len(list(read_texts(name, tokenizer(None)))) == 3
    assert [record.message for record in caplog.records] == [
        f"{name} holds chats and the tokenizer has no chat template: their messages are joined by "
        "line ends, without roles"
    ]


def test_begin_and_end_of_a_templated_chat_are_not_doubled(tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    framing = tokenizer(template)
    framing.add_special_tokens({"bos_token": "<|begin|>", "eos_token": "<|end|>"})
    begin, end = framing.convert_tokens_to_ids(["<|begin|>", "<|end|>"])
    name = as_lines(tmp_path / "a.jsonl", [{"messages": CHAT}] * 2)
    text = framing("Be brief.", add_special_tokens=False)["input_ids"]
    by_hand = [begin, *text, end] * 2
    assert load_corpus(name, framing, seq_len=len(by_hand)).sequences.tolist() == [by_hand]
    held_out = held_out_text(name, framing, 64)
    assert held_out.inputs[0][0].tolist() == [end, *by_hand[:-1]]
    assert [i for i in held_out.targets[0][0].tolist() if i != -100] == [*text, *text]
    assert held_out.bytes is None  # a template wrote a part of it


class TestJsonLines:
    @pytest.mark.parametrize(
        ("early", "late"),
        [
            ("1", '"one"'),
            ('{"a": 1}', "[1]"),
            ("null", '{"a": 1}'),
            ('{"a": {"b": 1}}', '{"a": "b"}'),
            ('"2026-01-01"', '"no date"'),
            ("[1, 2]", '[1, "two", null]'),
            ("1", "1" + "0" * 5000),  # more digits than Python converts
        ],
        ids=lambda value: value[:20],
    )
    def test_other_columns_may_change_their_type(
        self, early: str, late: str, tmp_path: Path
    ) -> None:
        first = f'{{"other": {early}, "text": "early"}}\n'
        last = f'{{"other": {late}, "new": 5, "text": "late"}}\n'
        (tmp_path / "a.jsonl").write_text(first * 20_000 + last)
        texts = [text.text for text in read_texts(str(tmp_path / "a.jsonl"), tokenizer())]
        assert texts == ["early"] * 20_000 + ["late"]

    @pytest.mark.parametrize(
        "content",
        [
            b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n',
            b'{"text": "a"}\r\n{"text": "b"}\r\n',
            b'\n{"text": "a"}\n\n  \n{"text": "b"}',
            b' {"text": "a"} \n\t{"text": "b"}\t',
            b'\xef\xbb\xbf[{"text": "a"},\r\n{"text": "b"}]',
            b'{"text": "a", "other": NaN}\n{"text": "b", "text": "b"}\n',
        ],
    )
    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
    def test_rows_are_read_however_lines_are_written(
        self, name: str, content: bytes, tmp_path: Path
    ) -> None:
        is_gzipped = name.endswith(".gz")
        (tmp_path / name).write_bytes(gzip.compress(content) if is_gzipped else content)
        texts = [text.text for text in read_texts(str(tmp_path / name), tokenizer())]
        assert texts == ["a", "b"]

    def test_a_line_of_many_megabytes_is_a_row(self, tmp_path: Path) -> None:
        name = as_lines(tmp_path / "a.jsonl", [{"text": "word " * 1_000_000}, {"text": "b"}])
        assert [len(text.text) for text in read_texts(name, tokenizer())] == [5_000_000, 1]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("null", "line 2 is null, no object: each row must be an object such as"),
            ('"text"', 'line 2 is "text", no object'),
            ("[1]", r"line 2 is \[1\], no object"),
            ('{"text": "b"', "line 2 is not JSON: Expecting ',' delimiter \\(column 13\\)"),
            ('{"text": "b"} {"text": "c"}', "line 2 is not JSON: Extra data \\(column 15\\)"),
            ("[" * 100_000, "line 2 is nested too deeply"),
        ],
        ids=lambda value: value[:20],
    )
    def test_a_line_that_is_no_row_is_named(self, line: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + line)
        with pytest.raises(CorpusError, match=rf"^{tmp_path}/a.jsonl, {message}"):
            list(read_texts(str(tmp_path / "a.jsonl"), tokenizer()))

    @pytest.mark.parametrize("first", ["null", "[1, 2]", "3", '{"a": 1', "[", "{"])
    def test_a_first_line_that_is_no_row_is_refused(self, first: str, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text(first + '\n{"text": "a"}\n')
        with pytest.raises(CorpusError, match=f"{tmp_path}/a.jsonl.* (no object|not JSON)"):
            list(read_texts(str(tmp_path / "a.jsonl"), tokenizer()))
