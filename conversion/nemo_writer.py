"""Writes a `.nemo` archive, or the folder that NeMo 2 uses in its place.

Knows the containers: an uncompressed tar of one folder, settings as YAML, the tokenizer's file. The
same input gives the same bytes. Settings come from `hub_to_nemo`, tensors from `megatron_names`.

    write_nemo(Path("OUT.partial"), settings, tensors, tokenizer_model=None,
               dist_format="torch_dist", progress=bar.update)
"""

import hashlib
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

import yaml

from minitron.conversion.distributed_writer import (
    DistFormat,
    PlannedFile,
    Progress,
    plan_checkpoint,
)
from minitron.files.lazy_tensor import LazyTensor


def write_nemo(
    path: Path,
    settings: Mapping[str, Any],
    tensors: Mapping[str, LazyTensor],
    *,
    tokenizer_model: Path | None,
    dist_format: DistFormat,
    progress: Progress,
) -> None:
    """Write a NeMo 1 archive: `settings` as its model_config.yaml, and a distributed checkpoint.

    `tensors` are those of `megatron_tensors`. The tokenizer's file is named by its content, and the
    written settings refer to it. `progress` is called with the number of tensor bytes after each
    write. Raises TargetError for a dtype that NeMo does not store, SourceError for a tensor that
    cannot be read.
    """
    weights = plan_checkpoint(tensors, "model.", dist_format, progress)
    members = [PlannedFile(f"model_weights/{m.name}", m.nbytes, m.write) for m in weights]
    if tokenizer_model is not None:
        content = tokenizer_model.read_bytes()
        # NeMo writes a random UUID here; it only has to be the same as in the settings.
        name = f"{hashlib.sha256(content).hexdigest()[:32]}_{tokenizer_model.name}"
        members.append(PlannedFile.of(name, content))
        tokenizer = {**(settings.get("tokenizer") or {}), "model": f"nemo:{name}"}
        settings = {**settings, "tokenizer": tokenizer}
    members.append(PlannedFile.of("model_config.yaml", _yaml(settings)))
    with path.open("wb") as file:
        _write_tar(file, sorted(members, key=lambda member: member.name))


def write_nemo2(
    folder: Path,
    settings: Mapping[str, Any],
    tensors: Mapping[str, LazyTensor],
    *,
    tokenizer_model: Path | None,
    progress: Progress,
) -> None:
    """Fill `folder` as NeMo 2 does: `settings` as context/model.yaml, and weights/.

    There is no context/io.json: it is the call graph of NeMo's own Python objects, which only NeMo
    can write. NeMo 2 therefore loads such a folder as weights for a model that its own recipe
    builds (`RestoreConfig`), and not as a model by itself. Arguments and errors are those of
    `write_nemo`.
    """
    members = [
        PlannedFile(f"weights/{member.name}", member.nbytes, member.write)
        for member in plan_checkpoint(tensors, "module.", "torch_dist", progress)
    ]
    if tokenizer_model is not None:
        members.append(
            PlannedFile.of(f"context/{tokenizer_model.name}", tokenizer_model.read_bytes())
        )
        tokenizer = {**(settings.get("tokenizer") or {}), "model_path": tokenizer_model.name}
        settings = {**settings, "tokenizer": tokenizer}
    members.append(PlannedFile.of("context/model.yaml", _yaml(settings)))
    for member in members:
        path = folder / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            _write_member(file, member)


def _yaml(settings: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True).encode()


def _write_tar(file: IO[bytes], members: Iterable[PlannedFile]) -> None:
    """A tar with folders, whose names start with "./" as those of `tar` of the folder "." do."""
    for name, member in _entries(members):
        file.write(_header(name, member))
        if member is not None:
            _write_member(file, member)
            file.write(bytes(-member.nbytes % tarfile.BLOCKSIZE))
    file.write(bytes(2 * tarfile.BLOCKSIZE))
    file.write(bytes(-file.tell() % tarfile.RECORDSIZE))


def _entries(members: Iterable[PlannedFile]) -> Iterator[tuple[str, PlannedFile | None]]:
    """Each member, after the folders that no earlier one is in; a folder has no member."""
    seen = set()
    for member in members:
        for folder in reversed(PurePosixPath(member.name).parents):
            if folder not in seen:
                seen.add(folder)
                yield "." if folder.name == "" else f"./{folder}", None
        yield f"./{member.name}", member


def _header(name: str, member: PlannedFile | None) -> bytes:
    """A header without time and owner; tarfile adds the slash to a folder."""
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.DIRTYPE if member is None else tarfile.REGTYPE
    entry.mode = 0o755 if member is None else 0o644
    entry.size = 0 if member is None else member.nbytes
    return entry.tobuf(format=tarfile.PAX_FORMAT)


def _write_member(file: IO[bytes], member: PlannedFile) -> None:
    start = file.tell()
    member.write(file)
    written = file.tell() - start
    assert written == member.nbytes, f"{member.name}: {member.nbytes} bytes planned, not {written}"
