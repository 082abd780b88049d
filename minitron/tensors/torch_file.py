"""The files of torch.save, at the level of bytes: where each tensor lies, without unpickling one.

Both formats of torch.save keep a pickle beside the raw bytes of the storages: a zip of stored
(never compressed) records, and the older stream of pickles. The pickle is read as data by
`inert_pickle`; the few calls that make tensors are answered here, with places in the file. So a
hostile file can do nothing, and a 16 GB file costs no more memory than its pickle.

    >>> read_torch_file(Path("pytorch_model.bin"))["lm_head.weight"].read(0, 10)
"""

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from minitron.errors import SourceError
from minitron.tensors.file_window import FileWindow
from minitron.tensors.inert_pickle import DAMAGE, read_pickle
from minitron.tensors.stored_tensor import StoredTensor
from minitron.tensors.torch_tensors import Storage, storage_key, tensor_builders

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older format
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then the lengths of name and extra field
LARGEST_PICKLE = 2**25  # bytes; those of the largest models have a few megabytes


def read_torch_file(
    path: Path, start: int = 0, length: int | None = None, *, outline: bool = False
) -> Mapping[str, StoredTensor]:
    """The tensors of a state dict by name; entries that are no tensors (TE's states) are left out.

    `outline` True: only names, dtypes and shapes are wanted, and offsets are not to be relied on.
    Raises SourceError if the file holds something else; `read_torch_object` takes that too.
    """
    root = read_torch_object(path, start, length, outline=outline)
    if not isinstance(root, dict):
        raise SourceError(f"{path} holds a {type(root).__name__}, not a state dict of tensors")
    named = {name: value for name, value in root.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, StoredTensor)}
    if not tensors:
        names = ", ".join(map(repr, list(named)[:3])) or "nothing by name"
        raise SourceError(f"{path} holds no tensor at its top level, but {names}")
    return tensors


def read_torch_object(
    path: Path, start: int = 0, length: int | None = None, *, outline: bool = False
) -> object:
    """What torch.save wrote at bytes [start, start + length) of the file, as data.

    Tensors and parameters are `StoredTensor`s, dicts and lists are themselves, and whatever else
    the pickle would have built is an `Inert`.
    """
    try:
        with path.open("rb") as file:
            window = FileWindow(file.fileno(), path, start, length)
            if window.read(4) == b"PK\x03\x04":
                return _read_zip(window, outline=outline)
            return _read_legacy(window)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from None


def _read_zip(window: FileWindow, *, outline: bool) -> object:
    path = window.path
    records = _records(window, outline=outline)
    roots = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise SourceError(f"{path} is a zip, but not of torch.save: it has no data.pkl")
    archive = roots[0].removesuffix("data.pkl")
    if f"{archive}constants.pkl" in records:
        raise SourceError(f"{path} is a TorchScript program; give a state dict")
    if (byteorder := records.get(f"{archive}byteorder")) is not None:
        window.seek(byteorder.offset - window.start)
        if window.read(min(byteorder.nbytes, 16)) != b"little":
            raise SourceError(f"{path} was written on a big-endian machine; save it on another")

    def storage(key: object) -> Storage:
        dtype, name, count = storage_key(key)
        record = records[f"{archive}data/{name}"]
        if count * dtype.itemsize > record.nbytes:
            raise ValueError(f"storage {name} has {record.nbytes} bytes for {count} elements")
        return Storage(record.offset, count * dtype.itemsize, dtype)

    root = records[roots[0]]
    if root.nbytes > LARGEST_PICKLE:
        raise SourceError(f"{path} has a pickle of {root.nbytes} bytes: it keeps more than tensors")
    window.seek(root.offset - window.start)
    pickled = io.BytesIO(window.read(root.nbytes))
    return read_pickle(pickled, tensor_builders(path, window.identity), str(path), storage)


def _records(window: FileWindow, *, outline: bool) -> dict[str, Storage]:
    """Where each record of the zip has its bytes; in outline, about where storages have theirs."""
    try:
        entries = zipfile.ZipFile(window).infolist()
        return {
            entry.filename: _listed(window, entry)
            if outline and "/data/" in entry.filename
            else _record(window, entry)
            for entry in entries
        }
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, *DAMAGE) as error:
        raise SourceError(f"{window.path} is truncated or damaged: {error}") from None


def _listed(window: FileWindow, entry: zipfile.ZipInfo) -> Storage:
    """By the zip's directory alone: the header before each storage may be as far as the storage."""
    return Storage(window.start + entry.header_offset, entry.file_size, torch.uint8)


def _record(window: FileWindow, entry: zipfile.ZipInfo) -> Storage:
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        how = "encrypted" if entry.flag_bits & 1 else "compressed"
        raise ValueError(f"record {entry.filename} is {how}, which torch.save never does")
    window.seek(entry.header_offset)
    signature, name, extra = LOCAL_HEADER.unpack(window.read(LOCAL_HEADER.size))
    offset = entry.header_offset + LOCAL_HEADER.size + name + extra
    if signature != b"PK\x03\x04" or offset + entry.file_size > window.length:
        raise ValueError(f"record {entry.filename} is not where the index says")
    return Storage(window.start + offset, entry.file_size, torch.uint8)


def _read_legacy(window: FileWindow) -> object:
    """Pickles one behind another (magic, version, machine, object, names), then the storages."""
    path, where = window.path, str(window.path)
    pickles = FileWindow(window.descriptor, path, window.start, min(window.length, LARGEST_PICKLE))
    if not _starts_as_legacy(pickles):
        raise SourceError(f"{path} is not a file of torch.save")
    read_pickle(pickles, {}, where)
    machine = read_pickle(pickles, {}, where)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise SourceError(f"{path} was written on a big-endian machine; save it on another")
    beginning = pickles.tell()
    dtypes: dict[str, torch.dtype] = {}

    def notice(key: object) -> None:
        dtype, name, _ = storage_key(key)
        dtypes[name] = dtype

    # The object stands before the places of its storages: it is read twice.
    read_pickle(pickles, {}, where, notice)
    names = read_pickle(pickles, {}, where)
    window.seek(pickles.tell())
    storages = _legacy_storages(window, names, dtypes)
    pickles.seek(beginning)
    return read_pickle(
        pickles,
        tensor_builders(path, window.identity),
        where,
        lambda key: _legacy_storage(key, storages),
    )


def _legacy_storage(key: object, storages: Mapping[str, Storage]) -> Storage:
    dtype, name, _ = storage_key(key)
    whole = storages[name]
    match key:
        case (*_, (_, int(first), int(count))):  # a view of another storage, before torch 1.0
            begin, nbytes = first * dtype.itemsize, count * dtype.itemsize
            if begin < 0 or nbytes < 0 or begin + nbytes > whole.nbytes:
                raise ValueError(f"storage {name} is too short for a view of it")
            return Storage(whole.offset + begin, nbytes, dtype)
    return Storage(whole.offset, whole.nbytes, dtype)


def _starts_as_legacy(window: FileWindow) -> bool:
    try:
        return read_pickle(window, {}, str(window.path)) == LEGACY_MAGIC
    except SourceError:
        return False


def _legacy_storages(
    window: FileWindow, names: object, dtypes: Mapping[str, torch.dtype]
) -> dict[str, Storage]:
    """The storages lie in the order of their names, each behind its number of elements."""
    storages = {}
    for name in names if isinstance(names, list) else []:
        if not isinstance(name, str) or (dtype := dtypes.get(name)) is None:
            raise SourceError(f"{window.path} is damaged: it has a storage that no tensor uses")
        count = int.from_bytes(window.read(8), "little", signed=True)
        offset, nbytes = window.tell(), count * dtype.itemsize
        if count < 0 or offset + nbytes > window.length:
            raise SourceError(f"{window.path} is truncated: it ends inside a storage")
        storages[name] = Storage(window.start + offset, nbytes, dtype)
        window.seek(offset + nbytes)
    return storages
