"""A GGUF file as a source like any other.

The metadata become config.json and a tokenizer's files; tensors are found by the header, and
dequantised as their rows are read.

    GgufSource(LocalFile.at(Path("model.gguf"))).tensors["model.norm.weight"].read()
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from weakref import finalize

import torch

from minitron.conversion.gguf_file import GgufFile, read_gguf
from minitron.conversion.gguf_metadata import FREQUENCIES, config_from_gguf
from minitron.conversion.gguf_tensors import hub_tensors
from minitron.conversion.gguf_tokenizer import write_tokenizer
from minitron.files.dtypes import name_of
from minitron.files.file import File
from minitron.files.lazy_tensor import Cast, LazyTensor
from minitron.model.source import Source

_TOKENS = "tokenizer.ggml.tokens"
_CARD = {  # the metadata of a model card
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
    "language": "general.languages",
}


class GgufSource(Source):
    """A GGUF file. Raises SourceError, or ArchitectureError for sizes that no model has."""

    format = "gguf"
    layout: str | None

    def __init__(self, file: File, *, revision: str | None = None) -> None:
        """`revision` is that of the repository that a file on the Hub is in."""
        self._file = read_gguf(file)
        self.name, self.revision = file.name, revision
        kinds = Counter(self._file.types.values())
        self.layout = ", ".join(kind for kind, _ in kinds.most_common())
        self.config = {**config_from_gguf(self._file), "dtype": name_of(self._dtype)}
        self.companions = GgufCompanions(self._file)

    @cached_property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The model's tensors under the Hub's names, all of one dtype."""
        stored = {name: each for name, each in self._file.tensors.items() if name != FREQUENCIES}
        return {
            name: tensor if tensor.dtype == self._dtype else Cast(tensor, self._dtype)
            for name, tensor in hub_tensors(stored, self.architecture).items()
        }

    @property
    def _dtype(self) -> torch.dtype:
        """That of the matrices where they have one, else float32; norms are always float32."""
        matrices = {each.dtype for each in self._file.tensors.values() if len(each.shape) > 1}
        halves = matrices & {torch.float16, torch.bfloat16}
        return halves.pop() if len(matrices) == len(halves) == 1 else torch.float32


class GgufCompanions:
    """The tokenizer's files, and what the metadata state of license and language."""

    def __init__(self, file: GgufFile) -> None:
        self._metadata, self._name = file.metadata, file.name

    def file(self, name: str) -> Path | None:
        """README.md with the metadata of a model card; None for any other file."""
        known = {key: self._metadata.get(stored) for key, stored in _CARD.items()}
        stated = {key: value for key, value in known.items() if value}
        if name != "README.md" or not stated:
            return None
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in stated.items()]
        path = self._folder / name
        path.write_text(f"---\n{''.join(lines)}---\n", encoding="utf-8")
        return path

    @property
    def tokenizer_names(self) -> list[str]:
        """The key that holds the vocabulary."""
        return [_TOKENS] if _TOKENS in self._metadata else []

    def tokenizer_files(self) -> Iterator[Path]:
        """tokenizer.json and the files beside it. Raises TokenizerError where none can be made."""
        return iter(self._tokenizer_files)

    def license_files(self) -> Iterator[Path]:
        """None: a GGUF file names its license, and carries no terms."""
        return iter(())

    @cached_property
    def _folder(self) -> Path:
        folder = Path(mkdtemp(prefix="minitron-"))  # exists as long as this object
        finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    @cached_property
    def _tokenizer_files(self) -> tuple[Path, ...]:
        if not self.tokenizer_names:
            return ()
        folder = self._folder / "tokenizer"
        folder.mkdir(exist_ok=True)
        write_tokenizer(self._metadata, folder, self._name)
        return tuple(sorted(folder.iterdir()))
