"""Publishable: checks that a model folder is fit for the Hub, before anything is sent.

Knows what from_pretrained and the Hub's metadata require of a folder, and what is never published:
hidden files and pickles.

    files = check_publishable(Path("tiny-half"))
    check_weights(Path("tiny-half"))   # reads them
"""

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import ModelCard

from minitron.errors import SourceError, foreign_parser
from minitron.files.dtypes import is_finite_in_file
from minitron.files.model_files import leads_outside
from minitron.publish.destination import is_repo_id
from minitron.records.card_page import read_front_matter
from minitron.records.folder_writer import check_companions
from minitron.sources.hub_folder import HubFolder
from minitron.sources.loading import hub_config, load_tokenizer

_PICKLED = (".bin", ".ckpt", ".joblib", ".nemo", ".pickle", ".pkl", ".pt", ".pth")
_PICKLE_STARTS = (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")
_PUBLISHED_HIDDEN = (".eval_results", ".gitattributes")


def check_publishable(folder: Path) -> dict[str, Path]:
    """The files to push, by their path in the repository; reads no weights.

    Raises SourceError for a folder that does not load, has pickles or has no valid model card.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder: minitron convert writes one that can be pushed")
    files = dict(_files(folder))
    pickled = [name for name, path in files.items() if _is_pickled(path)]
    if pickled:
        raise SourceError(
            f"{folder} has {pickled[0]}, a pickle, which can run code where it is loaded: remove "
            f"it, or write the model as safetensors with minitron convert {folder} OUT"
        )
    _check_loads(folder)
    _check_card(folder)
    return files


def check_weights(folder: Path) -> None:
    """Refuse weights that are not finite, which no command loads. Raises SourceError."""
    for name, tensor in HubFolder.at(folder).tensors.items():
        for part in tensor.ranges() or ():
            if not is_finite_in_file(part, tensor.dtype):
                raise SourceError(f"{folder}: {name} holds NaN or infinity: make the model again")


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file that is not hidden, by its path in the repository."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        shown = [part for part in parts if not part.startswith(".") or part in _PUBLISHED_HIDDEN]
        if path.is_file() and len(shown) == len(parts):
            if leads_outside(path, folder):
                raise SourceError(
                    f"{path} is a link to {path.resolve()}, outside its folder: put the file "
                    "itself there, or remove the link"
                )
            yield "/".join(parts), path


def _is_pickled(path: Path) -> bool:
    """Whether a file is a pickle, by its name or its first bytes."""
    with path.open("rb") as file:
        start = file.read(256)
    is_zipped = start.startswith(b"PK\3\4") and b"data.pkl" in start
    return path.suffix.lower() in _PICKLED or is_zipped or start.startswith(_PICKLE_STARTS)


def _check_loads(folder: Path) -> None:
    """Refuse what from_pretrained would refuse; reads headers and tokenizer, no weights."""
    source = HubFolder.at(folder)
    hub_config(source.config)
    source.check_weights()
    load_tokenizer(source)
    check_companions(source, source.config)


def _check_card(folder: Path) -> None:
    """Refuse a folder without a model card, or with metadata that the Hub would refuse."""
    path = folder / "README.md"
    if not path.is_file():
        raise SourceError(f"{folder} has no README.md: write a model card, metadata at its top")
    data = read_front_matter(path)
    with foreign_parser(f"{path}: its metadata", SourceError, "mend them"):
        ModelCard.load(path)
    if not data:
        raise SourceError(f"{path} has no metadata: begin it with license and base_model")
    bases = data.get("base_model", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not is_repo_id(base):
            raise SourceError(f"{path} names base_model {base!r}: write its id, owner/name")
