"""A `.nemo`, or a NeMo 2 folder, as a source like any other: config, tensors and tokenizer.

Knows how the parts of a NeMo checkpoint become those of a Hub folder. Weights stay where they are;
the tokenizer is built, and proven, in a temporary folder when its files are first asked for.

    NemoSource(Path("minitron-8b-base.nemo")).tensors["lm_head.weight"].read(0, 10)
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

from minitron.conversion.megatron_checkpoint import MegatronCheckpoint, read_checkpoint
from minitron.conversion.megatron_names import EMBEDDING, HEAD, hub_tensors
from minitron.conversion.nemo_archive import open_archive
from minitron.conversion.nemo_config import hub_config, is_zero_centered
from minitron.conversion.nemo_refusals import is_gated
from minitron.conversion.nemo_tokenizer import FoundTokenizer, find_tokenizer, is_instruct
from minitron.conversion.nemo_yaml import read_nemo2_settings, read_settings
from minitron.conversion.sentencepiece_model import SentencePieceModel, read_model
from minitron.conversion.sentencepiece_tokenizer import save_tokenizer
from minitron.errors import SourceError, TokenizerError
from minitron.files.lazy_tensor import LazyTensor
from minitron.model.architecture import Architecture
from modeling_nemotron import CHAT_TEMPLATE, NemotronConfig, chat_generation_config

logger = logging.getLogger(__name__)

_NEMO_1, _NEMO_2 = "model_config.yaml", "context/model.yaml"
_LARGEST_TEXT = 1 << 24  # bytes of a yaml
_LARGEST_TOKENIZER = 1 << 28


class NemoSource:
    """A NeMo checkpoint. Raises SourceError, or ArchitectureError for what no family holds."""

    format = "nemo"
    revision: str | None = None

    def __init__(self, path: Path, *, keep_vocab_padding: bool = False) -> None:
        self.name = str(path)
        self._keep_vocab_padding = keep_vocab_padding
        self._archive = open_archive(path)
        self._settings = self._read_settings()
        self._folder = Path(mkdtemp(prefix="minitron-"))  # lives as long as the source
        finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.config: Mapping[str, Any] = self._config()

    @property
    def layout(self) -> str:
        """How the weights lie, and in what."""
        return f"{self._checkpoint.layout} in a {self._archive.kind}"

    @property
    def writer(self) -> str | None:
        """What the checkpoint says of its format."""
        return self._checkpoint.writer

    @cached_property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The model's tensors under the Hub's names, located but not read."""
        architecture = Architecture.from_config(self.config)
        megatron = dict(self._checkpoint.tensors)
        if architecture.tie_word_embeddings and "PP" in self._checkpoint.layout:
            megatron.pop(f"{HEAD}.weight", None)  # the last stage's copy of the embedding
        return hub_tensors(
            megatron,
            architecture,
            is_zero_centered=is_zero_centered(self._settings),
        )

    def file(self, name: str) -> Path | None:
        """What a Hub folder would have beside the weights, where it can be told."""
        if name == "generation_config.json" and self._is_instruct:
            chat_generation_config(NemotronConfig(**self.config)).save_pretrained(self._folder)
            return self._folder / name
        return None

    @property
    def tokenizer_names(self) -> list[str]:
        """The tokenizer's file in the archive, or its id on the Hub."""
        found = self._tokenizer
        if found is None:
            return []
        return [name for name in (found.member, found.merges, found.hub_id) if name is not None]

    def tokenizer_files(self) -> Iterator[Path]:
        """tokenizer.json and its companions. Raises TokenizerError where none can be made."""
        return iter(self._built_tokenizer)

    def license_files(self) -> Iterator[Path]:
        """None: a `.nemo` carries no terms."""
        return iter(())

    @cached_property
    def _checkpoint(self) -> MegatronCheckpoint:
        return read_checkpoint(self._archive, is_gated=is_gated(self._settings))

    @cached_property
    def _tokenizer(self) -> FoundTokenizer | None:
        try:
            return find_tokenizer(self._settings, self._archive.names())
        except TokenizerError as error:
            logger.warning("%s: %s", self.name, error)
            return None

    @property
    def _is_instruct(self) -> bool:
        is_ours = self.config["model_type"] == "nemotron"
        return is_ours and is_instruct(self._settings, self.name)

    def _read_settings(self) -> dict[str, Any]:
        for name, read in ((_NEMO_1, read_settings), (_NEMO_2, read_nemo2_settings)):
            if name in self._archive:
                text = self._archive.read(name, _LARGEST_TEXT).decode("utf-8", "replace")
                return read(text, f"{self.name}/{name}")
        raise SourceError(
            f"{self.name} has neither {_NEMO_1} nor {_NEMO_2}: it is no NeMo checkpoint"
        )

    def _config(self) -> dict[str, Any]:
        """config.json, with the vocabulary that tokenizer and tensors agree on."""
        hub_config(self._settings, vocab_size=1)  # what no family holds is refused before tensors
        embedding = self._checkpoint.tensors.get(f"{EMBEDDING}.weight")
        if embedding is None:
            raise SourceError(f"{self.name} has no word embeddings: it is no language model")
        rows, tokens = embedding.shape[0], self._tokens
        if tokens is not None and tokens > rows:
            raise SourceError(
                f"{self.name}: its tokenizer has {tokens} tokens, but its embedding only {rows} "
                "rows: they do not belong together"
            )
        return hub_config(
            self._settings,
            vocab_size=rows if tokens is None or self._keep_vocab_padding else tokens,
            dtype=embedding.dtype,
            special=None if self._sentencepiece is None else self._sentencepiece.special,
        )

    @property
    def _tokens(self) -> int | None:
        """The size of the tokenizer; None where the archive does not hold it."""
        if self._sentencepiece is not None:
            return len(self._sentencepiece.pieces)
        files = {path.name: path for path in self._hugging_face}
        if "tokenizer.json" not in files:
            return None
        return int(Tokenizer.from_file(str(files["tokenizer.json"])).get_vocab_size())

    @cached_property
    def _sentencepiece(self) -> SentencePieceModel | None:
        found = self._tokenizer
        if found is None or found.kind != "sentencepiece" or found.member is None:
            return None
        self._model_file.write_bytes(self._archive.read(found.member, _LARGEST_TOKENIZER))
        return read_model(self._model_file)

    @property
    def _model_file(self) -> Path:
        return self._folder / "tokenizer.model"

    @cached_property
    def _hugging_face(self) -> tuple[Path, ...]:
        """The files of a Hugging Face tokenizer that the archive holds, copied out."""
        found = self._tokenizer
        if found is None or found.kind != "huggingface" or found.member is None:
            return ()
        member, folder = PurePosixPath(found.member), self._folder / "huggingface"
        folder.mkdir()
        for name in self._archive.names():
            path = PurePosixPath(name)
            if path == member or path.parent == member:
                (folder / path.name).write_bytes(self._archive.read(name, _LARGEST_TOKENIZER))
        return tuple(sorted(folder.iterdir()))

    @cached_property
    def _built_tokenizer(self) -> tuple[Path, ...]:
        if self._hugging_face:
            return self._hugging_face
        if self._sentencepiece is None:
            found = self._tokenizer
            if found is not None and found.hub_id is not None:
                logger.warning(
                    "its tokenizer is that of %s on the Hub: add its files", found.hub_id
                )
                return ()
            kind = "no tokenizer" if found is None else f"a {found.kind} tokenizer"
            raise TokenizerError(
                f"{self.name} holds {kind}, of which no tokenizer.json can be made: add its "
                "SentencePiece model to the archive"
            )
        folder = self._folder / "tokenizer"
        folder.mkdir()
        save_tokenizer(self._model_file, folder)
        if self._is_instruct:
            (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
        return tuple(sorted(folder.iterdir()))
