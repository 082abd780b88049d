"""Writes a `.nemo` archive, or the folder that NeMo 2 uses in its place.

Knows the containers: an uncompressed tar of one folder, settings as YAML, the tokenizer's file. The
same input gives the same bytes. Which settings a model needs, and what tensors are called, others
know (`nemo_config`, `megatron_names`).

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
    Member,
    Progress,
    checkpoint_members,
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

    `tensors` bear Megatron's names with layer numbers and without prefix, as `megatron_tensors`
    gives them. The tokenizer's file is named by its content, and `settings` made to point at it.
    `progress` hears the bytes of tensors. Raises TargetError for a dtype that NeMo does not store,
    SourceError for a tensor that cannot be read.
    """
    weights = checkpoint_members(tensors, "model.", dist_format, progress)
    members = [Member(f"model_weights/{m.name}", m.nbytes, m.write) for m in weights]
    if tokenizer_model is not None:
        content = tokenizer_model.read_bytes()
        # NeMo puts a random UUID here, and only asks that the settings name the same file.
        name = f"{hashlib.sha256(content).hexdigest()[:32]}_{tokenizer_model.name}"
        members.append(Member.of(name, content))
        tokenizer = {**(settings.get("tokenizer") or {}), "model": f"nemo:{name}"}
        settings = {**settings, "tokenizer": tokenizer}
    members.append(Member.of("model_config.yaml", _yaml(settings)))
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

    There is no context/io.json: it is the call graph of NeMo's own Python objects, and only NeMo
    can make one that it accepts. So NeMo 2 takes such a folder as weights for a model that its
    own recipe makes (`RestoreConfig`), and not as a model by itself. Arguments and errors are
    those of `write_nemo`.
    """
    members = [
        Member(f"weights/{member.name}", member.nbytes, member.write)
        for member in checkpoint_members(tensors, "module.", "torch_dist", progress)
    ]
    if tokenizer_model is not None:
        members.append(Member.of(f"context/{tokenizer_model.name}", tokenizer_model.read_bytes()))
        tokenizer = {**(settings.get("tokenizer") or {}), "model_path": tokenizer_model.name}
        settings = {**settings, "tokenizer": tokenizer}
    members.append(Member.of("context/model.yaml", _yaml(settings)))
    for member in members:
        place = folder / member.name
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("wb") as file:
            _write_member(file, member)


def _yaml(settings: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True).encode()


def _write_tar(file: IO[bytes], members: Iterable[Member]) -> None:
    """A tar whose members start with "./", as `tar` of the folder "." does, and folders too."""
    for name, member in _entries(members):
        file.write(_header(name, member))
        if member is not None:
            _write_member(file, member)
            file.write(bytes(-member.nbytes % tarfile.BLOCKSIZE))
    file.write(bytes(2 * tarfile.BLOCKSIZE))
    file.write(bytes(-file.tell() % tarfile.RECORDSIZE))


def _entries(members: Iterable[Member]) -> Iterator[tuple[str, Member | None]]:
    """Each member behind the folders that are new with it; a folder has no member."""
    seen = set()
    for member in members:
        for folder in reversed(PurePosixPath(member.name).parents):
            if folder not in seen:
                seen.add(folder)
                yield "." if folder.name == "" else f"./{folder}", None
        yield f"./{member.name}", member


def _header(name: str, member: Member | None) -> bytes:
    """Of no time and no owner; tarfile adds the slash to a folder."""
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.DIRTYPE if member is None else tarfile.REGTYPE
    entry.mode = 0o755 if member is None else 0o644
    entry.size = 0 if member is None else member.nbytes
    return entry.tobuf(format=tarfile.PAX_FORMAT)


def _write_member(file: IO[bytes], member: Member) -> None:
    start = file.tell()
    member.write(file)
    written = file.tell() - start
    assert written == member.nbytes, f"{member.name}: {member.nbytes} bytes planned, not {written}"
