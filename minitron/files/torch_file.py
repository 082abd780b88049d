"""The files of torch.save, at the level of bytes: where each tensor is, without unpickling one.

Both formats of torch.save keep a pickle beside the raw bytes of the storages: a zip of stored
(never compressed) records, and the older stream of pickles. The pickle is read as data by
`inert_pickle`; the few calls that make tensors return places in the file here. So a hostile file
can do nothing, and a 16 GB file costs no more memory than its pickle.

    >>> read_torch_file(LocalFile.at(Path("pytorch_model.bin")))["lm_head.weight"].read(0, 10)
"""

import io
import struct
import zipfile
from collections.abc import Mapping

import torch

from minitron.errors import SourceError
from minitron.files.cached_file import CachedFile, Cursor
from minitron.files.file import File
from minitron.files.inert_pickle import DAMAGE, Global, Inert, read_pickle
from minitron.files.lazy_tensor import StoredTensor
from minitron.files.torch_tensors import (
    Storage,
    StorageReference,
    StorageReferences,
    tensor_builders,
)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older format
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then the lengths of name and extra field
VERSIONS = range(1, 11)  # of the zip, that torch reads (caffe2/serialize/versions.h)
LEGACY_VERSION = 1001
END = struct.Struct("<4s4H2LH")  # of a zip: signature, disks, entries, directory, comment
LARGE_END = struct.Struct("<4sQ4x2L4Q")  # signature, size, disks, entries, directory
POINTER = struct.Struct("<4sLQL")  # signature, disk, where the large end is, disks
FOLDER = 0x10  # among a record's attributes
KNOWN_FLAGS = 0x0808  # sizes behind the data, names in UTF-8
LARGEST_PICKLE = 2**25  # bytes; those of the largest models have a few megabytes


def read_torch_file(file: File, *, outline: bool = False) -> Mapping[str, StoredTensor]:
    """The tensors of a state dict by name; entries that are no tensors (TE's states) are left out.

    `outline` True reads names, dtypes and shapes only: the offsets are wrong. Raises SourceError if
    the file holds something else, which `read_torch_object` reads.
    """
    root = read_torch_object(file, outline=outline)
    if not isinstance(root, dict):
        raise SourceError(f"{file.name} holds a {type(root).__name__}, not a state dict of tensors")
    named = {name: value for name, value in root.items() if isinstance(name, str)}
    for name, value in named.items():
        match value:
            case Inert(call=Global(module, call)) if module.partition(".")[0] == "torch":
                raise SourceError(
                    f"{file.name}: {name} is made by {module}.{call}, no kind of tensor that is "
                    "read here: save it dense and unquantized"
                )
    tensors = {name: value for name, value in named.items() if isinstance(value, StoredTensor)}
    if not tensors:
        names = ", ".join(map(repr, list(named)[:3])) or "nothing by name"
        raise SourceError(f"{file.name} holds no tensor at its top level, but {names}")
    return tensors


def read_torch_object(file: File, *, outline: bool = False) -> object:
    """What torch.save wrote into the file, as data.

    Tensors and parameters are `StoredTensor`s, dicts and lists are themselves, and whatever else
    the pickle would have built is an `Inert`.
    """
    cursor = Cursor(file)
    is_zip = cursor.read(4) == b"PK\x03\x04"
    return _read_zip(cursor, outline=outline) if is_zip else _read_legacy(cursor)


def _read_zip(cursor: Cursor, *, outline: bool) -> object:
    path = cursor.file.name
    records = _records(cursor, outline=outline)
    roots = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise SourceError(f"{path} is a zip, but not of torch.save: it has no data.pkl")
    archive = roots[0].removesuffix("data.pkl")
    if f"{archive}constants.pkl" in records:
        raise SourceError(f"{path} is a TorchScript program; give a state dict")
    if outside := [name for name in records if not name.startswith(archive)]:
        raise SourceError(f"{path} is truncated or damaged: record {outside[0]!r} is in no archive")
    _check_marks(cursor, records, archive)
    references = StorageReferences()

    def storage(key: object) -> Storage:
        reference = references.read(key)
        record = records[f"{archive}data/{reference.name}"]
        if reference.nbytes != record.nbytes or reference.view is not None:
            raise ValueError(
                f"storage {reference.name} has {record.nbytes} bytes for {reference.count} elements"
            )
        return Storage(record.offset, record.nbytes, reference.dtype)

    root = records[roots[0]]
    if root.nbytes > LARGEST_PICKLE:
        raise SourceError(f"{path} has a pickle of {root.nbytes} bytes: it keeps more than tensors")
    cursor.seek(root.offset)
    pickled = io.BytesIO(cursor.read(root.nbytes))
    return read_pickle(pickled, tensor_builders(cursor.file), path, storage)


def _beginning(cursor: Cursor, record: Storage) -> bytes:
    """The first bytes of a record."""
    cursor.seek(record.offset)
    return cursor.read(min(record.nbytes, 16))


def _check_marks(cursor: Cursor, records: Mapping[str, Storage], archive: str) -> None:
    """Refuse a file of another byte order, or of a version that torch does not read."""
    order, version = records.get(f"{archive}byteorder"), records.get(f"{archive}version")
    if order is not None and _beginning(cursor, order) != b"little":
        raise SourceError(
            f"{cursor.file.name} was written on a big-endian machine; save it on another"
        )
    written = b"3" if version is None else _beginning(cursor, version).strip()
    if not written.isdigit() or int(written) not in VERSIONS:
        raise SourceError(f"{cursor.file.name} is of version {written!r} of torch.save's format")


def _records(cursor: Cursor, *, outline: bool) -> dict[str, Storage]:
    """Where each record of the zip is; in outline, only about where each storage is."""
    try:
        entries = zipfile.ZipFile(cursor).infolist()
        _check_directory(cursor, entries)
        return {
            entry.filename: _listed_record(entry)
            if outline and "/data/" in entry.filename
            else _record(cursor, entry)
            for entry in entries
        }
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, *DAMAGE) as error:
        raise SourceError(f"{cursor.file.name} is truncated or damaged: {error}") from None


def _check_directory(cursor: Cursor, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse, with a ValueError, a directory in which two readers could find different records.

    torch's reader takes the first of two equal names, in any case, and trusts the offsets and
    counts, which Python's reader corrects.
    """
    names = {entry.filename.lower() for entry in entries}
    if len(names) < len(entries):
        raise ValueError("a record is there twice")
    count, begin = _end_of_zip(cursor)
    if count != len(entries) or min(entry.header_offset for entry in entries) != 0:
        raise ValueError("its directory is not that of its records")
    if max(entry.header_offset for entry in entries) >= begin:
        raise ValueError("a record is behind the directory")
    for entry in entries:
        name = entry.orig_filename
        if name != entry.filename:
            raise ValueError(f"record {name!r} has a damaged name")
        if entry.volume or entry.external_attr & FOLDER or entry.flag_bits & ~KNOWN_FLAGS & ~1:
            raise ValueError(f"record {name!r} has unknown flags")


def _end_of_zip(cursor: Cursor) -> tuple[int, int]:
    """Entries of the directory and where it begins, refused unless both end records agree.

    torch.save writes the end of a large zip, a pointer to it, and the usual end, without comment.
    """
    cursor.seek(cursor.file.size - END.size)
    signature, *disks, here, whole, nbytes, begin, comment = END.unpack(cursor.read(END.size))
    if signature != b"PK\5\6" or comment or any(disks) or here != whole:
        raise ValueError("it does not end as torch.save ends it")
    start = max(cursor.file.size - END.size - POINTER.size - LARGE_END.size, 0)
    cursor.seek(start)
    large, pointer = cursor.read(LARGE_END.size), cursor.read(POINTER.size)
    if pointer[:4] != b"PK\6\7":
        return whole, begin
    fields = LARGE_END.unpack(large)
    if POINTER.unpack(pointer) != (b"PK\6\7", 0, start, 1) or fields[:2] != (b"PK\6\6", 44):
        raise ValueError("its end is not where it says")
    signature, _, *disks, here, whole_64, nbytes_64, begin_64 = fields
    agree = (whole in (whole_64, 2**16 - 1), nbytes in (nbytes_64, 2**32 - 1))
    if any(disks) or here != whole_64 or not all((*agree, begin in (begin_64, 2**32 - 1))):
        raise ValueError("its two ends disagree")
    return whole_64, begin_64


def _listed_record(entry: zipfile.ZipInfo) -> Storage:
    """A record by the directory alone: reading its header would cost a request on the Hub."""
    return Storage(entry.header_offset, entry.file_size, torch.uint8)


def _record(cursor: Cursor, entry: zipfile.ZipInfo) -> Storage:
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        how = "encrypted" if entry.flag_bits & 1 else "compressed"
        raise ValueError(f"record {entry.filename} is {how}, which torch.save never does")
    cursor.seek(entry.header_offset)
    signature, length, extra = LOCAL_HEADER.unpack(cursor.read(LOCAL_HEADER.size))
    name = cursor.read(length).decode("utf-8")
    offset = entry.header_offset + LOCAL_HEADER.size + length + extra
    if (
        (signature, name) != (b"PK\x03\x04", entry.filename)
        or entry.compress_size != entry.file_size
        or offset + entry.file_size > cursor.file.size
    ):
        raise ValueError(f"record {entry.filename} is not where the index says")
    return Storage(offset, entry.file_size, torch.uint8)


def _read_legacy(cursor: Cursor) -> object:
    """Pickles one behind another (magic, version, machine, object, names), then the storages."""
    where = cursor.file.name
    # Cached, since pickles are read byte by byte.
    pickles = Cursor(CachedFile(cursor.file.window(0, min(cursor.file.size, LARGEST_PICKLE))))
    if not _starts_as_legacy(pickles):
        raise SourceError(f"{where} is not a file of torch.save")
    version, machine = (read_pickle(pickles, {}, where) for _ in range(2))
    if version != LEGACY_VERSION:
        raise SourceError(f"{where} is of version {version!r:.40} of torch.save's older format")
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise SourceError(f"{where} was written on a big-endian machine; save it on another")
    beginning = pickles.position
    references = StorageReferences()
    # The object comes before the places of its storages: it is read twice.
    read_pickle(pickles, {}, where, references.read)
    names = read_pickle(pickles, {}, where)
    cursor.seek(pickles.position)
    storages = _legacy_storages(cursor, names, references.by_name)
    pickles.seek(beginning)
    builders = tensor_builders(cursor.file)
    return read_pickle(
        pickles, builders, where, lambda key: _legacy_storage(references.read(key), storages)
    )


def _legacy_storage(reference: StorageReference, storages: Mapping[str, Storage]) -> Storage:
    whole = storages[reference.name]
    match reference.view:
        case None:
            return whole
        case (str(), int(first), int(count)):  # a view of another storage, before torch 1.0
            itemsize = whole.dtype.itemsize
            begin, nbytes = first * itemsize, count * itemsize
            if begin < 0 or nbytes < 0 or begin + nbytes > whole.nbytes:
                raise ValueError(f"storage {reference.name} is too short for a view of it")
            return Storage(whole.offset + begin, nbytes, whole.dtype)
    raise ValueError(f"a strange view of storage {reference.name}")


def _starts_as_legacy(cursor: Cursor) -> bool:
    try:
        return read_pickle(cursor, {}, cursor.file.name) == LEGACY_MAGIC
    except SourceError:
        return False


def _legacy_storages(
    cursor: Cursor, names: object, references: Mapping[str, StorageReference]
) -> dict[str, Storage]:
    """The storages are in the order of their names, each behind its number of elements."""
    storages: dict[str, Storage] = {}
    for name in names if isinstance(names, list) else []:
        if not isinstance(name, str) or (reference := references.get(name)) is None:
            raise SourceError(
                f"{cursor.file.name} is damaged: it has a storage that no tensor uses"
            )
        count = int.from_bytes(cursor.read(8), "little", signed=True)
        offset = cursor.position
        if name in storages or not 0 <= count == reference.count:
            raise SourceError(f"{cursor.file.name} is damaged: storage {name} has another size")
        if offset + reference.nbytes > cursor.file.size:
            raise SourceError(f"{cursor.file.name} is truncated: it ends inside a storage")
        storages[name] = Storage(offset, reference.nbytes, reference.dtype)
        cursor.seek(offset + reference.nbytes)
    return storages
