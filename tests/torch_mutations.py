"""Randomly damaged files of torch.save, and whether they are read as torch.load reads them.

The damage is seeded. To test many files (each printed line is a fault):

    python -m tests.torch_mutations 20000
"""

import io
import pickletools
import random
import sys
import tempfile
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import torch

from minitron.errors import SourceError
from minitron.files.file import LocalFile
from minitron.files.torch_file import read_torch_file

_OPCODES = [ord(opcode.code) for opcode in pickletools.opcodes]


def state_dict(*, zipped: bool) -> dict[str, torch.Tensor]:
    """Views, parameters, dtypes of every width, and storages of equal size and different dtypes."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    whole = draw(6, 4)
    state = OrderedDict(
        whole=whole,
        turned=whole.t(),
        part=whole[2:, 1:3],
        parameter=torch.nn.Parameter(draw(3)),
        half=draw(6, 4).half(),
        bfloat16=draw(5, 2).bfloat16(),
        integers=torch.arange(12).view(3, 4),
        scalar=torch.tensor(2.5),
        empty=torch.empty(0, 3),
        expanded=draw(4).expand(3, 4),
        first=draw(12),
        second=draw(12),
        double=draw(6).double(),
        flags=torch.tensor([True, False]),
    )
    if zipped:  # dtypes that the older format does not have
        state["float8"] = draw(8).to(torch.float8_e5m2)
        state["uint16"] = torch.arange(7).to(torch.uint16)
    return state


def saved_bytes(*, zipped: bool) -> bytes:
    """The state dict in one of torch.save's two formats."""
    buffer = io.BytesIO()
    torch.save(state_dict(zipped=zipped), buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def pickle_place(data: bytes, *, zipped: bool) -> range:
    """The bytes of the pickle that names the tensors."""
    if not zipped:
        return range(data.find(b"uint16") + 1, data.find(b"flags") + 400)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entry = archive.getinfo("archive/data.pkl")
    name, extra = (
        int.from_bytes(data[entry.header_offset + at :][:2], "little") for at in (26, 28)
    )
    start = entry.header_offset + 30 + name + extra
    return range(start, start + entry.file_size)


def mutated(data: bytes, seed: str, *, zipped: bool) -> bytes:
    """The data with one to three faults: in bytes, bits, opcodes, numbers, digits or the index."""
    draw, changed = random.Random(seed), bytearray(data)
    place = pickle_place(data, zipped=zipped)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        inside = draw.choice(place)
        match draw.randrange(8):
            case 0:
                changed[draw.randrange(len(changed))] = draw.randrange(256)
            case 1:
                changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
            case 2:
                changed[inside] = draw.randrange(256)
            case 3:
                changed[inside] = draw.choice(_OPCODES)
            case 4:
                changed[inside] = (changed[inside] + draw.choice([-2, -1, 1, 2])) % 256
            case 5:
                other, count = draw.choice(place), draw.randrange(1, 20)
                changed[inside : inside + count] = changed[other : other + count]
            case 6:
                digits = [at for at in place if chr(changed[at]).isdigit()]
                if digits:
                    changed[draw.choice(digits)] = ord(draw.choice("0123456789"))
            case 7 if zipped:
                index = data.find(b"PK\1\2")
                changed[draw.randrange(index, len(changed))] = draw.randrange(256)
    return bytes(changed)


def fault_of(path: Path) -> str | None:
    """How reading a file differs from torch.load; None if it is refused or read the same."""
    try:
        ours = {name: tensor.read() for name, tensor in read_torch_file(LocalFile.at(path)).items()}
    except SourceError:
        return None
    try:
        theirs = torch.load(path, weights_only=True)
    except Exception:  # it refuses calls that our reader does not execute
        return None
    expected = {
        name: tensor.detach()
        for name, tensor in theirs.items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor)
    }
    if ours.keys() != expected.keys():
        return f"names {sorted(set(ours) ^ set(expected))}"
    for name, tensor in expected.items():
        if (ours[name].dtype, ours[name].shape) != (tensor.dtype, tensor.shape):
            return f"{name}: {ours[name].dtype} {list(ours[name].shape)}, not {tensor.dtype}"
        if _bytes(ours[name]) != _bytes(tensor):
            return f"{name}: other values"
    return None


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def faults(count: int, path: Path, *, zipped: bool, seed: int = 0) -> dict[str, str]:
    """The faults of `count` damaged files, by the seed of each; writes each to `path`."""
    data = saved_bytes(zipped=zipped)
    found = {}
    for number in range(count):
        key = f"{seed} {zipped} {number}"
        path.write_bytes(mutated(data, key, zipped=zipped))
        if (fault := fault_of(path)) is not None:
            found[key] = fault
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for is_zipped in (True, False):
            files = Path(folder) / "model.bin"
            for key, fault in faults(int(sys.argv[1]), files, zipped=is_zipped, seed=1).items():
                print(key, fault)
            print("done", Counter(zipped=is_zipped))
