"""Tensors in the pickle of torch.save: the calls that make them return places in the file here.

Knows the names of storages and dtypes, and refuses a view that leaves its storage. Knows no
container: the reader says where the storage of a key is.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from minitron.files.dtypes import dtype_named, name_of
from minitron.files.file import File
from minitron.files.inert_pickle import Builders, Global
from minitron.files.lazy_tensor import StoredTensor, row_major

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
# dtypes younger than the named storages: their tensors name the dtype beside an untyped storage
YOUNG = (
    "uint16 uint32 uint64 complex32 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz "
    "float8_e8m0fnu"
)
DTYPES = {
    name_of(dtype): dtype
    for dtype in (*STORAGES.values(), *(dtype_named(name) for name in YOUNG.split()))
}
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
_DEVICE = re.compile(r"(cpu|cuda|hpu|ipu|maia|mps|mtia|npu|privateuseone|xla|xpu)(:\d+)?", re.ASCII)
LARGEST_EXPANSION = 2**28  # an expanded tensor may be larger than its storage, up to here
LARGEST_COUNT = 2**48  # of elements; torch's own sizes overflow somewhere above


@dataclass(frozen=True)
class Storage:
    """The bytes that one or more tensors are views of."""

    offset: int  # in bytes from the start of the file
    nbytes: int
    dtype: torch.dtype


@dataclass(frozen=True)
class StorageReference:
    """A storage outside the pickle, as the pickle describes it."""

    dtype: torch.dtype
    name: str
    count: int  # of elements
    view: object = None  # (key, first element, elements) of the oldest files

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return self.count * self.dtype.itemsize


class StorageReferences:
    """The references of one pickle, refused where two of them disagree about one storage.

    torch.load trusts the first and ignores the others.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, StorageReference] = {}
        self._views: dict[object, tuple[str, object]] = {}

    def read(self, key: object) -> StorageReference:
        """A persistent id of torch.save. Raises ValueError for one that torch does not write."""
        reference = _storage_reference(key)
        known = self.by_name.setdefault(reference.name, reference)
        if (known.dtype, known.count) != (reference.dtype, reference.count):
            raise ValueError(f"storage {reference.name} has two kinds or two sizes")
        match reference.view:
            case (str(view), *place):
                if self._views.setdefault(view, (reference.name, place)) != (reference.name, place):
                    raise ValueError(f"view {view} is of two places")
        return reference


def _storage_reference(key: object) -> StorageReference:
    match key:
        case ("storage", Global(module, kind), str(name), str(device), count, *view) if (
            type(count) is int and 0 <= count < LARGEST_COUNT and len(view) < 2
        ):
            if kind not in STORAGES or module not in _STORAGE_MODULES:
                raise ValueError(f"a storage of unknown kind, {kind} of {module}")
            if not _DEVICE.fullmatch(device):
                raise ValueError(f"a storage on an unknown device, {device}")
            return StorageReference(STORAGES[kind], name, count, *view)
    raise ValueError("a reference to something that is no storage")


def tensor_builders(file: File) -> Builders:
    """The calls by which a pickle makes tensors, as functions that return places in the file."""
    place = StoredTensor(file, torch.uint8, (), 0)

    def tensor_v1(storage: object, first: object, shape: object, strides: object) -> StoredTensor:
        if not isinstance(storage, Storage):
            raise TypeError("a tensor without a storage")
        return _located(place, storage, storage.dtype, first, shape, strides)

    def tensor_v2(storage: object, *arguments: object) -> StoredTensor:
        first, shape, strides, *flags = arguments
        _check_flags(*flags)
        return tensor_v1(storage, first, shape, strides)

    def tensor_v3(storage: object, *arguments: object) -> StoredTensor:
        first, shape, strides, grad, hooks, dtype, *metadata = arguments
        _check_flags(grad, hooks, *metadata)
        if not isinstance(storage, Storage):
            raise TypeError("a tensor without a storage")
        match dtype:
            case Global(module="torch", name=name) if name in DTYPES:
                return _located(place, storage, DTYPES[name], first, shape, strides)
        raise ValueError("a tensor of no known dtype")

    def parameter(data: object, grad: object, hooks: object, _state: object = None) -> object:
        _check_flags(grad, hooks)
        if not isinstance(data, StoredTensor):
            raise TypeError("a parameter without a tensor")
        return data

    builders: dict[Global, Callable[..., object]] = {
        Global("torch._utils", "_rebuild_tensor"): tensor_v1,
        Global("torch._utils", "_rebuild_tensor_v2"): tensor_v2,
        Global("torch._utils", "_rebuild_tensor_v3"): tensor_v3,
        Global("torch._utils", "_rebuild_parameter"): parameter,
        Global("torch._utils", "_rebuild_parameter_with_state"): parameter,
    }
    # A tensor that carries Python attributes names the call, its class, the arguments, the rest.
    attributed = Global("torch._tensor", "_rebuild_from_type_v2")
    builders[attributed] = lambda call, _kind, arguments, _state: builders[call](*arguments)
    return builders


def _check_flags(grad: object, hooks: object, metadata: object = None) -> None:
    """Refuse what torch.save does not write, and values stored conjugated or negated."""
    if type(grad) is not bool or hooks not in ({}, None):
        raise TypeError("a tensor with hooks, or without a flag for its gradient")
    if metadata not in ({}, None):
        raise ValueError("a tensor stored conjugated or negated")


def _located(
    place: StoredTensor,
    storage: Storage,
    dtype: torch.dtype,
    first: object,
    shape: object,
    strides: object,
) -> StoredTensor:
    """A view of a storage, refused unless every element is inside it."""
    sizes, steps = _counts(shape), _counts(strides)
    (begin,) = _counts((first,))
    if len(sizes) != len(steps) or math.prod(size or 1 for size in sizes) > LARGEST_COUNT:
        raise ValueError(f"a tensor of shape {sizes} and strides {steps}")
    offset = storage.offset + begin * dtype.itemsize
    if 0 in sizes:
        return replace(place, dtype=dtype, shape=sizes, offset=offset)
    span = 1 + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    if (begin + span) * dtype.itemsize > storage.nbytes:
        raise ValueError(f"a storage of {storage.nbytes} bytes is too short for shape {sizes}")
    gaps = None if _is_dense(sizes, steps) else steps
    located = replace(place, dtype=dtype, shape=sizes, offset=offset, strides=gaps)
    if located.nbytes > max(storage.nbytes, LARGEST_EXPANSION):
        raise ValueError(f"{storage.nbytes} bytes would expand to {located.nbytes}")
    return located


def _is_dense(sizes: tuple[int, ...], steps: tuple[int, ...]) -> bool:
    """Whether elements are row by row without gaps; the stride of a single row does not matter."""
    rows = zip(sizes, steps, row_major(sizes), strict=True)
    return all(size == 1 or step == dense for size, step, dense in rows)


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > 64:
        raise TypeError("sizes that are no short tuple")
    for value in values:
        if type(value) is not int or not 0 <= value < LARGEST_COUNT:
            raise ValueError("a size that is no reasonable number")
    return tuple(values)
