"""The tokenizer that a NeMo checkpoint carries, and whether the model was trained to chat.

Knows the keys under which every version of NeMo names tokenizer files, and how it renames them in
an archive. A path in the settings is only looked up among the archive's own members, never outside.

    >>> find_tokenizer({"tokenizer": {"library": "sentencepiece", "model": "nemo:ab_t.model"}},
    ...                ["./model_config.yaml", "./ab_t.model"]).member
    './ab_t.model'
"""

import logging
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import Any, Literal
from weakref import finalize

from tokenizers import Tokenizer

from minitron.conversion.nemo_archive import Archive
from minitron.conversion.sentencepiece_model import SentencePieceModel, read_model
from minitron.conversion.sentencepiece_tokenizer import save_tokenizer
from minitron.errors import TokenizerError
from minitron.files.plain_yaml import one_line, short_repr

logger = logging.getLogger(__name__)

Kind = Literal["sentencepiece", "huggingface", "tiktoken", "megatron", "bpe"]

# The second is that of the published Nemotron-4-340B. Some configs have both keys, with different
# hashes, and the archive has only one of the files.
_MODEL_KEYS = ("model", "tokenizer_model")
_HASHED = re.compile(r"[0-9a-f]{32}_")  # NeMo puts a uuid4 before the names of its artifacts
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_CHAT = re.compile(r"(?<![a-z])(instruct|chat)(?![a-z])", re.IGNORECASE)
_LARGEST_FILE = 1 << 28  # bytes


@dataclass(frozen=True)
class FoundTokenizer:
    """A tokenizer: its kind, and its file in the archive or its id on the Hub."""

    kind: Kind
    member: str | None = None  # as the archive spells it; of a Hugging Face one, its folder
    hub_id: str | None = None
    merges: str | None = None  # the second file of a "bpe" one


class ArchiveTokenizer:
    """The tokenizer of an archive, copied out of it or built from its SentencePiece model.

    It is built and checked in a temporary folder when its files are first asked for.
    """

    def __init__(self, archive: Archive, settings: Mapping[str, Any], name: str) -> None:
        """Errors call the checkpoint `name`."""
        self._archive, self._settings, self._name = archive, settings, name
        self.folder = Path(mkdtemp(prefix="minitron-"))  # exists as long as the tokenizer
        finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    @property
    def names(self) -> list[str]:
        """The tokenizer's file in the archive, or its id on the Hub."""
        found = self._found_tokenizer
        if found is None:
            return []
        return [name for name in (found.member, found.merges, found.hub_id) if name is not None]

    @property
    def tokens(self) -> int | None:
        """How many tokens it has; None where the archive does not hold it."""
        if self._sentencepiece is not None:
            return len(self._sentencepiece.pieces)
        files = {path.name: path for path in self._hugging_face}
        if "tokenizer.json" not in files:
            return None
        return int(Tokenizer.from_file(str(files["tokenizer.json"])).get_vocab_size())

    @property
    def special(self) -> Mapping[str, int] | None:
        """The ids of unk, bos, eos and pad; None without a SentencePiece model."""
        return None if self._sentencepiece is None else self._sentencepiece.special

    def files(self, chat_template: str | None) -> tuple[Path, ...]:
        """tokenizer.json and the files beside it. Raises TokenizerError where none can be made.

        `chat_template` is added to a tokenizer that is built here.
        """
        if self._hugging_face:
            return self._hugging_face
        if self._sentencepiece is None:
            found = self._found_tokenizer
            if found is not None and found.hub_id is not None:
                logger.warning(
                    "its tokenizer is that of %s on the Hub: add its files", found.hub_id
                )
                return ()
            kind = "no tokenizer" if found is None else f"a {found.kind} tokenizer"
            raise TokenizerError(
                f"{self._name} holds {kind}, of which no tokenizer.json can be made: add its "
                "SentencePiece model to the archive"
            )
        folder = self.folder / "tokenizer"
        folder.mkdir()
        save_tokenizer(self._model_file, folder)
        if chat_template is not None:
            (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
        return tuple(sorted(folder.iterdir()))

    @cached_property
    def _found_tokenizer(self) -> FoundTokenizer | None:
        try:
            return find_tokenizer(self._settings, self._archive.names())
        except TokenizerError as error:
            logger.warning("%s: %s", self._name, error)
            return None

    @cached_property
    def _sentencepiece(self) -> SentencePieceModel | None:
        found = self._found_tokenizer
        if found is None or found.kind != "sentencepiece" or found.member is None:
            return None
        self._model_file.write_bytes(self._archive.read(found.member, _LARGEST_FILE))
        return read_model(self._model_file)

    @property
    def _model_file(self) -> Path:
        return self.folder / "tokenizer.model"

    @cached_property
    def _hugging_face(self) -> tuple[Path, ...]:
        """The files of a Hugging Face tokenizer that the archive holds, copied out."""
        found = self._found_tokenizer
        if found is None or found.kind != "huggingface" or found.member is None:
            return ()
        member, folder = PurePosixPath(found.member), self.folder / "huggingface"
        folder.mkdir()
        for name in self._archive.names():
            path = PurePosixPath(name)
            if path == member or path.parent == member:
                (folder / path.name).write_bytes(self._archive.read(name, _LARGEST_FILE))
        return tuple(sorted(folder.iterdir()))


def find_tokenizer(settings: Mapping[str, Any], names: Collection[str]) -> FoundTokenizer:
    """The tokenizer that NeMo 1's settings describe, among an archive's members.

    Raises TokenizerError where the archive has no such file and the settings name no Hub id, and
    where it has several that could be meant.
    """
    section = settings.get("tokenizer")
    section = section if isinstance(section, Mapping) else {}
    library = section.get("library")
    if library == "huggingface":
        return _hugging_face(section, names)
    for key in _MODEL_KEYS:
        if member := _member(section.get(key), names):
            return FoundTokenizer("tiktoken" if library == "tiktoken" else "sentencepiece", member)
    if vocabulary := _member(section.get("vocab_file"), names):
        merges = _member(section.get("merge_file"), names)
        if merges:
            return FoundTokenizer("bpe", vocabulary, merges=merges)
        return FoundTokenizer("tiktoken" if library == "tiktoken" else "megatron", vocabulary)
    if member := _only_model(names):
        return FoundTokenizer("sentencepiece", member)
    values = [section.get(key) for key in (*_MODEL_KEYS, "vocab_file", "type")]
    listed = ", ".join(short_repr(value) for value in values if value is not None) or "nothing"
    raise TokenizerError(
        f"the NeMo config names {one_line(listed)} as its tokenizer, and the archive has no such "
        "file: add it"
    )


def is_instruct(settings: Mapping[str, Any], name: str) -> bool:
    """Whether a checkpoint was trained on the family's chat prompt.

    It was where its fine-tuning data is chat (`data.chat`), where the last part of its name has the
    word instruct or chat, and where the data has chat_prompt_tokens and no `chat`.
    """
    data = settings.get("data")
    data = data if isinstance(data, Mapping) else {}
    if data.get("chat") is True or _CHAT.search(PurePosixPath(name).name):
        return True
    # NeMo's template for any fine-tuning has such tokens, beside `chat: false`.
    return data.get("chat") is None and bool(data.get("chat_prompt_tokens"))


def _hugging_face(section: Mapping[str, Any], names: Collection[str]) -> FoundTokenizer:
    """A Hub id in `type`; or, in NeMo 2, a folder beside model.yaml."""
    name = section.get("type")
    if folder := _folder(name, names):
        return FoundTokenizer("huggingface", folder)
    for key in _MODEL_KEYS:  # a tokenizer.json, or the SentencePiece model it was made from
        if member := _member(section.get(key), names):
            kind: Kind = "sentencepiece" if member.endswith(".model") else "huggingface"
            return FoundTokenizer(kind, member)
    is_inside = isinstance(name, str) and name.startswith(("context/", "nemo:"))
    if isinstance(name, str) and not is_inside and _HUB_ID.fullmatch(name):
        return FoundTokenizer("huggingface", hub_id=name)
    raise TokenizerError(
        f"the NeMo config names the Hugging Face tokenizer {short_repr(name)}, which is neither "
        "an id on the Hub nor a file of the archive: add its files"
    )


def _member(value: Any, names: Collection[str]) -> str | None:
    """The member that a setting names: by its whole path, else by its last part."""
    if not isinstance(value, str) or not value:
        return None
    path = PurePosixPath(value.removeprefix("nemo:"))
    if same := [name for name in names if PurePosixPath(name) == path]:
        return same[0]
    namesakes = [name for name in names if PurePosixPath(name).name == path.name]
    hashed = [name for name in names if _without_hash(name) == path.name]
    return _outermost(value, namesakes) or _outermost(value, hashed)


def _folder(value: Any, names: Collection[str]) -> str | None:
    """The folder of the archive that a setting names."""
    if not isinstance(value, str):
        return None
    wanted = PurePosixPath(value.removeprefix("nemo:")).name
    folders = sorted({folder for name in names for folder in _parents(name)})
    return _outermost(value, [folder for folder in folders if PurePosixPath(folder).name == wanted])


def _parents(name: str) -> Iterator[str]:
    parents = PurePosixPath(name).parents
    return (str(parent) for parent in parents if parent.name)


def _without_hash(name: str) -> str:
    return _HASHED.sub("", PurePosixPath(name).name, count=1)


def _only_model(names: Collection[str]) -> str | None:
    """The one SentencePiece file beside the settings: in the root, or in NeMo 2's `context`."""
    beside = [
        name
        for name in names
        if name.endswith(".model") and PurePosixPath(name).parent.name in ("", "context")
    ]
    return _outermost("a .model file", beside)


def _outermost(value: str, members: list[str]) -> str | None:
    """The member nearest to the root. Raises TokenizerError for several at the same depth."""
    if not members:
        return None
    depth = min(len(PurePosixPath(name).parts) for name in members)
    nearest = [name for name in members if len(PurePosixPath(name).parts) == depth]
    if len(nearest) > 1:
        raise TokenizerError(
            f"the tokenizer may be any of {one_line(', '.join(nearest))} in the archive, which "
            f"has {len(nearest)} for {one_line(value)}: keep only the right one"
        )
    return nearest[0]
