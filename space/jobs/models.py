"""Shelf: the models that are loaded, shared by all visitors, within a bound of memory.

The one that was not used for longest goes first, and none that is in use. Who needs several gets
them all or waits, so two visitors never wait for each other's.

    with shelf.lent("tiny", "tiny-half") as (teacher, child):
        teacher.model(...)
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minitron.errors import TokenizerError
from minitron.files.device_memory import readable_bytes
from minitron.sources.loading import default_device, load_model, load_tokenizer
from minitron.space.jobs.catalog import Family, Member
from minitron.space.jobs.errors import BusyError, VisitorError
from minitron.text.encoding import prompt_ids

INT8 = "int8"
_PATIENCE = 60.0  # seconds to wait for a place
_BYTES = 2  # of a number where a config says nothing else


@dataclass(frozen=True)
class Key:
    """A model as it is loaded: by name, with its own weights or with integers."""

    name: str
    quantization: str | None = None

    @property
    def label(self) -> str:
        """What a visitor reads."""
        return self.name if self.quantization is None else f"{self.name} · {self.quantization}"


@dataclass
class Loaded:
    """A model that computes, and its tokenizer."""

    key: Key
    member: Member
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weight_bytes: int
    vocabulary: str  # digest; equal where two models' ids mean the same
    lenders: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ids_of(self, prompt: str) -> list[int]:
        """The prompt's tokens; the text of a special token is text."""
        with self._lock:
            ids = prompt_ids(self.tokenizer, prompt)
        if ids and max(ids) >= self.model.config.vocab_size:
            raise TokenizerError(f"{self.key.label}: its tokenizer belongs to another model")
        return ids or [self.tokenizer.bos_token_id or 0]

    def text_of(self, ids: Sequence[int]) -> str:
        """What tokens read as, special ones left out."""
        with self._lock:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    @property
    def context(self) -> int:
        """Tokens of prompt and answer at most."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 4096)

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a text."""
        said = self.model.generation_config.eos_token_id
        said = said if said is not None else self.model.config.eos_token_id
        return frozenset(said if isinstance(said, list) else [] if said is None else [said])


class Shelf:
    """At most `limit` bytes of weights."""

    def __init__(
        self, family: Family, limit: int, load: Callable[[Member, Key], Loaded] | None = None
    ) -> None:
        self._family, self._limit = family, limit
        self._load = load or load_member
        self._loaded: OrderedDict[Key, Loaded] = OrderedDict()
        self._changed = threading.Condition()

    @property
    def held(self) -> list[Key]:
        """What is loaded now, the least recently used first."""
        with self._changed:
            return list(self._loaded)

    @contextmanager
    def lent(self, *keys: Key) -> Iterator[list[Loaded]]:
        """The models, kept loaded until the block ends. Raises BusyError, VisitorError."""
        wanted = list(dict.fromkeys(keys))
        self._check_fit(wanted)
        lent = self._borrow(wanted)
        try:
            yield [lent[key] for key in keys]
        finally:
            with self._changed:
                for loaded in lent.values():
                    loaded.lenders -= 1
                self._changed.notify_all()

    def _check_fit(self, wanted: list[Key]) -> None:
        together = sum(map(self._size, wanted))
        if together > self._limit and len(wanted) > 1:
            raise VisitorError(
                f"these models take {readable_bytes(together)} together, and this Space holds "
                f"{readable_bytes(self._limit)}: choose fewer or smaller ones"
            )

    def _size(self, key: Key) -> int:
        """Bytes, as loaded or, before, as they will at most be."""
        if key in self._loaded:
            return self._loaded[key].weight_bytes
        inspection = self._family.member(key.name).inspection
        on_cpu = default_device() == "cpu"
        return max(inspection.bytes, inspection.parameters * (4 if on_cpu else _BYTES))

    def _borrow(self, wanted: list[Key]) -> dict[Key, Loaded]:
        """Make room, load what is missing, one loader at a time."""
        deadline = time.monotonic() + _PATIENCE
        with self._changed:
            while not self._make_room(wanted):
                if not self._changed.wait(deadline - time.monotonic()):
                    raise BusyError("all memory is in use by other visitors: try again in a minute")
            for key in wanted:
                if key not in self._loaded:
                    self._loaded[key] = self._load(self._family.member(key.name), key)
                self._loaded.move_to_end(key)
            for key in wanted:
                self._loaded[key].lenders += 1
            return {key: self._loaded[key] for key in wanted}

    def _make_room(self, wanted: list[Key]) -> bool:
        """Put away what nobody uses until all that is wanted fits; whether it does."""
        others = [key for key in self._loaded if key not in wanted]
        taken = sum(map(self._size, {*others, *wanted}))
        for key in others:
            if taken <= self._limit:
                break
            if not self._loaded[key].lenders:
                taken -= self._size(key)
                del self._loaded[key]
        in_use = any(self._loaded[key].lenders for key in self._loaded if key not in wanted)
        return taken <= self._limit or not in_use  # one too large for the bound is held alone


def can_quantize() -> bool:
    """Whether int8 weights can be had here."""
    return all(find_spec(name) for name in ("minitron.sources.quantization", "optimum")) and bool(
        find_spec("optimum.quanto")
    )


def load_member(member: Member, key: Key) -> Loaded:
    """Read a member's weights and tokenizer. Raises MinitronError."""
    source = member.open()
    tokenizer = load_tokenizer(source)
    tokenizer.split_special_tokens = True  # what a visitor types is text
    model = load_model(source, device=default_device())
    if key.quantization is not None:
        from minitron.sources.quantization import quantized

        model = quantized(model, key.quantization)
    vocabulary = repr(sorted(tokenizer.get_vocab().items()))
    return Loaded(
        key,
        member,
        model,
        tokenizer,
        _bytes_of(model),
        hashlib.sha256(vocabulary.encode()).hexdigest(),
    )


def _bytes_of(model: torch.nn.Module) -> int:
    """What the weights take, those of integers with their scales."""
    try:
        from minitron.sources.quantization import weight_bytes
    except ImportError:
        return sum(tensor.nbytes for tensor in model.parameters())
    return weight_bytes(model)  # type: ignore[arg-type]
