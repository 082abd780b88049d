"""The text of a row: a column of text, a chat, or a prompt with its completion.

| columns                      | text                                                             |
|------------------------------|------------------------------------------------------------------|
| `text`                       | as it is                                                         |
| `messages`, `conversations`  | as the tokenizer's chat template writes it; without a template,  |
|                              | the contents joined by line ends                                 |
| `prompt` and `completion`    | joined; two lists of messages are one chat                       |
| `content`                    | as it is                                                         |

The first of these that a row has is used. A message is {"role", "content"} or {"from", "value"}.
Opens no file.

    text_of_row(TableRow("a.jsonl, line 1", {"text": "It was"}), tokenizer).text   # "It was"
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

from minitron.errors import CorpusError, foreign_parser

Tokenizer = Callable[..., Any]  # a transformers tokenizer: texts in, {"input_ids": [[...]]} out
Origin = Literal["text", "completed prompt", "joined messages", "chat template"]

TOOLS = "tools"  # the functions that a chat may call; its template writes them
CHOICES: tuple[tuple[str, ...], ...] = (  # columns that make a text; the first that exist are used
    ("text",),
    ("messages", TOOLS),
    ("messages",),
    ("conversations", TOOLS),
    ("conversations",),
    ("prompt", "completion", TOOLS),
    ("prompt", "completion"),
    ("content",),
)
_REMEDY = "correct or remove it"
_ROLES = {  # of ShareGPT and its relatives, as chat templates name them
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")


@dataclass(frozen=True, slots=True)
class TableRow:
    """The columns of one row of a file or a Hub dataset; errors name it by `where`."""

    where: str
    columns: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a corpus."""

    text: str
    origin: Origin = "text"

    @property
    def has_special_tokens(self) -> bool:
        """Whether it contains begin, end and roles, so that the tokenizer must add none."""
        return self.origin == "chat template"


def text_of_row(row: TableRow, tokenizer: Tokenizer) -> Text:
    """The text of a row. Raises CorpusError that names the row and what to do."""
    columns, where = row.columns, row.where
    wanted = next((choice for choice in CHOICES if all(c in columns for c in choice)), None)
    if wanted is None:
        present = ", ".join(map(str, columns)) or "none"
        raise CorpusError(
            f"{where} has no text: its columns are {present:.150}: name the one to read text, or "
            "give messages, conversations, prompt and completion, or content"
        )
    first = columns[wanted[0]]
    if wanted[0] in ("text", "content"):
        return Text(_as_string(first, wanted[0], where))
    if wanted[0] == "prompt":
        second = columns["completion"]
        if not (isinstance(first, list) and isinstance(second, list)):
            texts = (_as_string(first, "prompt", where), _as_string(second, "completion", where))
            return Text("".join(texts), "completed prompt")
        first = [*first, *second]
    messages = _messages(first, wanted[0], where)
    return _chat(messages, _tools(columns.get(TOOLS), where), tokenizer, where)


def _as_string(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise CorpusError(
            f"{where} has {value!r:.60} as {column}: it must hold text: {_REMEDY}, or convert it"
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            seen = value[error.start : error.end].encode("unicode_escape").decode()
            raise CorpusError(
                f"{where} has half a character ({seen:.20}) in {column}: {_REMEDY}"
            ) from error
    return value


def _messages(value: Any, column: str, where: str) -> list[dict[str, Any]]:
    """Messages as chat templates expect them: a role, a content that is one text, other keys.

    `datasets` returns a sequence of objects as an object of lists, which is transposed here.
    """
    if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
        rows = zip_longest(*value.values())
        value = [dict(zip(value, row, strict=True)) for row in rows]
    if not isinstance(value, list) or not value:
        raise CorpusError(
            f"{where} has {value!r:.60} as {column}: it must be a list of messages, each with role "
            f"and content, or from and value: {_REMEDY}"
        )
    return [_message(message, f"{where}, message {n}") for n, message in enumerate(value, 1)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise CorpusError(f"{where} is {message!r:.60}, no role and content: {_REMEDY}")
    fields = _without_none(message)
    role_key = "role" if "role" in fields else "from"
    content_key = "value" if "value" in fields and "content" not in fields else "content"
    role = fields.pop(role_key, None)
    if role_key == "from" and isinstance(role, str):
        role = _ROLES.get(role.lower(), role.lower())
    if not isinstance(role, str) or (role_key == "from" and role not in _KNOWN_ROLES):
        raise CorpusError(
            f"{where} has {role!r:.40} as {role_key}: it must name who speaks, such as user or "
            f"assistant: {_REMEDY}"
        )
    content = fields.pop(content_key, None)
    if content is None and not fields.get("tool_calls"):
        raise CorpusError(f"{where} has no {content_key}: {_REMEDY}")
    text = None if content is None else _content(content, content_key, where)
    return {**fields, "role": role, "content": text}


def _content(value: Any, column: str, where: str) -> str:
    """A content as one text; several parts are joined."""
    if not isinstance(value, list):
        return _as_string(value, column, where)
    texts = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind != "text":
            raise CorpusError(
                f"{where} has a part of type {kind!r:.40}: only text can be read: {_REMEDY}"
            )
        texts.append(
            _as_string(part.get("text") if isinstance(part, dict) else part, column, where)
        )
    return "".join(texts)


def _without_none(value: Any) -> Any:
    """A value without its None: a table has every key in every row."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _tools(value: Any, where: str) -> list[Any] | None:
    """The tools of a chat; many datasets hold them as a JSON string."""
    if isinstance(value, str) and value.strip():
        with foreign_parser(f"{where}, {TOOLS}", CorpusError, _REMEDY):
            value = json.loads(value)
    if value is not None and not isinstance(value, (list, str)):
        raise CorpusError(f"{where} has {value!r:.60} as {TOOLS}: it must be a list: {_REMEDY}")
    return _without_none(value) or None


def _chat(
    messages: list[dict[str, Any]], tools: list[Any] | None, tokenizer: Tokenizer, where: str
) -> Text:
    if getattr(tokenizer, "chat_template", None) is not None:
        with foreign_parser(f"{where}: its chat", CorpusError, f"{_REMEDY}, or the chat template"):
            text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)  # type: ignore[attr-defined]
        return Text(_as_string(text, "chat", where), "chat template")
    if tools or any(message.get("tool_calls") for message in messages):
        raise CorpusError(
            f"{where} calls tools, which only a chat template can write, and the tokenizer has "
            "none: add chat_template.jinja to the model, or remove the row"
        )
    return Text("\n".join(message["content"] for message in messages), "joined messages")
