"""What a NeMo checkpoint has beside its weights, as the files of a Hub folder.

The tokenizer is built and checked in a temporary folder when its files are first read.

    tokenizer = ArchiveTokenizer(archive, settings, "minitron-8b-base.nemo")
    NemoCompanions(tokenizer, config, chats=False).tokenizer_files()
"""

import logging
import shutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

from tokenizers import Tokenizer

from minitron.conversion.nemo_archive import Archive
from minitron.conversion.nemo_tokenizer import FoundTokenizer, find_tokenizer
from minitron.conversion.sentencepiece_model import SentencePieceModel, read_model
from minitron.conversion.sentencepiece_tokenizer import save_tokenizer
from minitron.errors import TokenizerError
from modeling_nemotron import CHAT_TEMPLATE, NemotronConfig, chat_generation_config

logger = logging.getLogger(__name__)

_LARGEST_TOKENIZER = 1 << 28  # bytes of a file


class ArchiveTokenizer:
    """The tokenizer of an archive, copied out of it or built from its SentencePiece model."""

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
        self._model_file.write_bytes(self._archive.read(found.member, _LARGEST_TOKENIZER))
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
                (folder / path.name).write_bytes(self._archive.read(name, _LARGEST_TOKENIZER))
        return tuple(sorted(folder.iterdir()))


class NemoCompanions:
    """Tokenizer and generation settings; a NeMo checkpoint carries no license files."""

    def __init__(
        self, tokenizer: ArchiveTokenizer, config: Mapping[str, Any], *, chats: bool
    ) -> None:
        """`config` is config.json; `chats` is true of a model trained on the chat prompt."""
        self._tokenizer, self._config, self._chats = tokenizer, config, chats

    def file(self, name: str) -> Path | None:
        """A chat model's generation_config.json; None for any other file."""
        if name != "generation_config.json" or not self._chats:
            return None
        chat_generation_config(NemotronConfig(**self._config)).save_pretrained(
            self._tokenizer.folder
        )
        return self._tokenizer.folder / name

    @property
    def tokenizer_names(self) -> list[str]:
        """The tokenizer's file in the archive, or its id on the Hub."""
        return self._tokenizer.names

    def tokenizer_files(self) -> Iterator[Path]:
        """tokenizer.json and the files beside it. Raises TokenizerError where none can be made."""
        return iter(self._tokenizer_files)

    def license_files(self) -> Iterator[Path]:
        """None: a `.nemo` carries no terms."""
        return iter(())

    @cached_property
    def _tokenizer_files(self) -> tuple[Path, ...]:
        return self._tokenizer.files(CHAT_TEMPLATE if self._chats else None)
