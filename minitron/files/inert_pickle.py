"""A pickle read as data: nothing that it names is ever imported, called or built.

A pickle is a program for a small stack machine. This one runs it with two changes: a global is
only its name, and a call is looked up in the caller's table; a call that is not there becomes an
`Inert` record. So the worst pickle yields a strange value or a SourceError.

    >>> read_pickle(BytesIO(pickle.dumps(print)), {}, where="x.pkl")
    Global(module='builtins', name='print')
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, NoReturn, Protocol, cast

from minitron.errors import SourceError

DAMAGE = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, MemoryError)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERAL_TYPES = frozenset(
    {"int", "int_or_bool", "float", "str", "bytes", "bytes_or_str", "bytearray", "None", "bool"}
)
ANY_ENCODING = ("STRING", "BINSTRING", "SHORT_BINSTRING")  # texts of Python 2
LITERALS = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    if not opcode.stack_before and any(made.name in LITERAL_TYPES for made in opcode.stack_after)
)


@dataclass(frozen=True)
class Global:
    """A module's member that the pickle names."""

    module: str
    name: str


@dataclass(eq=False, repr=False)
class Inert:
    """A call that was not run: the call, and what the pickle then put into its result.

    Only its type is printed: a hostile pickle nests values without end.
    """

    call: object
    arguments: tuple[object, ...]
    state: object = None
    items: list[object] = field(default_factory=list)


class ByteStream(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


Builders = Mapping[Global, Callable[..., object]]
BUILTIN: Builders = {
    Global("collections", "OrderedDict"): lambda pairs=(): _dictionary(pairs),
    Global("torch", "Size"): lambda sizes=(): tuple(sizes),
    Global("builtins", "set"): lambda members=(): {_key(member) for member in members},
    Global("__builtin__", "set"): lambda members=(): {_key(member) for member in members},
}


def read_pickle(
    stream: ByteStream,
    builders: Builders,
    where: str,
    persistent: Callable[[object], object] | None = None,
) -> object:
    """The value of the pickle that starts here; the stream is then at its end.

    `builders` are the only functions that are called, with the pickle's arguments; `persistent`
    returns the objects that the pickle keeps elsewhere. Both may raise what is in DAMAGE.
    """
    machine = _Machine({**BUILTIN, **builders}, persistent or _no_persistent)
    try:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], stream)):
            machine.run(opcode.name, argument)
        return machine.stack.pop()
    except DAMAGE as error:
        raise SourceError(f"{where} holds a damaged pickle: {error}") from None


def _no_persistent(key: object) -> NoReturn:
    raise ValueError("it refers to objects outside itself")


def _dictionary(pairs: object) -> dict[object, object]:
    if not isinstance(pairs, list | tuple):
        raise TypeError("an OrderedDict of no pairs")
    return {_key(key): value for key, value in pairs}


def _key(value: object) -> object:
    """The value as a dictionary's key: hashing deeper tuples could exhaust the C stack."""
    for part in value if isinstance(value, tuple) else (value,):
        if not isinstance(part, str | bytes | int | float | Global | Inert | None):
            raise TypeError(f"a {type(part).__name__} as a key")
    return value


class _Machine:
    """The stack machine. One method runs one opcode; names are those of pickletools."""

    def __init__(self, builders: Builders, persistent: Callable[[object], object]) -> None:
        self.builders = builders
        self.persistent = persistent
        self.stack: list[object] = []
        self.outer: list[list[object]] = []  # the stacks below each open mark
        self.memo: dict[object, object] = {}

    def run(self, name: str, argument: object) -> None:
        if name in LITERALS:
            if name in ANY_ENCODING and not str(argument).isascii():
                raise ValueError("a text of unknown encoding")
            self.stack.append(CONSTANTS.get(name, argument))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name == "MARK":
            self.outer.append(self.stack)
            self.stack = []
        elif name in ("PROTO", "FRAME", "STOP"):
            pass
        elif not self._collect(name) and not self._fill(name):
            self._call(name, argument)

    def _marked(self) -> list[object]:
        marked, self.stack = self.stack, self.outer.pop()
        return marked

    def _collect(self, name: str) -> bool:
        """Build a value from those on the stack; False for an opcode that builds none."""
        match name:
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "EMPTY_SET":
                self.stack.append(set())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                values = [self.stack.pop() for _ in range(int(name[-1]))]
                self.stack.append(tuple(reversed(values)))
            case "TUPLE" | "LIST" | "FROZENSET" | "DICT":
                marked = self._marked()
                self.stack.append(_collection(name, marked))
            case "DUP":
                self.stack.append(self.stack[-1])
            case "POP":
                self.stack.pop() if self.stack else self._marked()
            case "POP_MARK":
                self._marked()
            case _:
                return False
        return True

    def _fill(self, name: str) -> bool:
        """Put values into the one below them; False for an opcode that does not."""
        match name:
            case "APPEND" | "SETITEM":
                count = 1 if name == "APPEND" else 2
                values = [self.stack.pop() for _ in range(count)][::-1]
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                values = self._marked()
            case "BUILD":
                state, target = self.stack.pop(), self.stack[-1]
                if isinstance(target, Inert):
                    target.state = state
                # A dict's is its _metadata. A tensor's would change where its elements are.
                elif not isinstance(target, dict) or not isinstance(state, dict):
                    raise TypeError(f"a state for a {type(target).__name__}")
                return True
            case _:
                return False
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.items.extend(values)
        elif isinstance(target, dict) and name.startswith("SETITEM"):
            target.update(_dictionary(_pairs(values)))
        elif isinstance(target, list) and name.startswith("APPEND"):
            target.extend(values)
        elif isinstance(target, set) and name == "ADDITEMS":
            target.update(map(_key, values))
        else:
            raise TypeError(f"{name} into a {type(target).__name__}")
        return True

    def _call(self, name: str, argument: object) -> None:
        """Names, calls, and references to objects outside the pickle."""
        match name:
            case "GLOBAL":
                self.stack.append(Global(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                member, module = self.stack.pop(), self.stack.pop()
                if not isinstance(module, str) or not isinstance(member, str):
                    raise TypeError("a name that is no text")
                self.stack.append(Global(module, member))
            case "REDUCE" | "NEWOBJ":
                arguments, call = self.stack.pop(), self.stack.pop()
                self.stack.append(self._build(call, arguments))
            case "NEWOBJ_EX":
                named, arguments, call = (self.stack.pop() for _ in range(3))
                self.stack.append(Inert(call, (arguments, named)))
            case "INST":
                self.stack.append(self._build(Global(*str(argument).split(" ", 1)), self._marked()))
            case "OBJ":
                call, *arguments_of_call = self._marked()
                self.stack.append(self._build(call, arguments_of_call))
            case "PERSID":
                self.stack.append(self.persistent(argument))
            case "BINPERSID":
                self.stack.append(self.persistent(self.stack.pop()))
            case _:
                raise ValueError(f"opcode {name}")

    def _build(self, call: object, arguments: object) -> object:
        if not isinstance(arguments, tuple | list):
            raise TypeError("a call without arguments")
        if isinstance(call, Global) and call in self.builders:
            return self.builders[call](*arguments)
        return Inert(call, tuple(arguments))


def _pairs(values: list[object]) -> list[tuple[object, object]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _collection(name: str, values: list[object]) -> object:
    match name:
        case "TUPLE":
            return tuple(values)
        case "LIST":
            return list(values)
        case "FROZENSET":
            return frozenset(map(_key, values))
        case _:
            return _dictionary(_pairs(values))
