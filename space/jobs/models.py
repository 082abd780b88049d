"""Models: those that are loaded, shared by all visitors, within a bound of memory.

The least recently used model is evicted first, and none that is in use. A request that needs
several models gets all of them or waits, so that two requests never wait for each other's.

    with cache.acquire(ModelKey("tiny"), ModelKey("tiny-half")) as (teacher, student):
        teacher.model(...)
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minitron.errors import TokenizerError
from minitron.files.device_memory import readable_bytes
from minitron.sources.loading import default_device, load_model, load_tokenizer
from minitron.sources.quantization import quantized, weight_bytes
from minitron.space.jobs.catalog import Catalog, CatalogModel
from minitron.space.jobs.request import BusyError, VisitorError
from minitron.text.encoding import prompt_ids

INT8 = "int8"
_WAIT_SECONDS = 60.0  # for memory that others use
_BYTES = 2  # of a number on a GPU


@dataclass(frozen=True)
class ModelKey:
    """A model as it is loaded: its name, and None for its own weights."""

    name: str
    quantization: str | None = None

    @property
    def label(self) -> str:
        """The name that a visitor reads."""
        return self.name if self.quantization is None else f"{self.name} · {self.quantization}"


@dataclass
class LoadedModel:
    """A model in memory, and its tokenizer."""

    key: ModelKey
    entry: CatalogModel
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weight_bytes: int
    vocabulary: str  # digest; equal where two models' ids mean the same
    users: int = 0
    # Encoding sets truncation in the tokenizer, which fails while another thread decodes with it.
    tokenizer_lock: threading.Lock = field(default_factory=threading.Lock)

    def encode(self, prompt: str) -> list[int]:
        """The prompt's tokens; the text of a special token is text."""
        with self.tokenizer_lock:
            ids = prompt_ids(self.tokenizer, prompt)
        if ids and max(ids) >= self.model.config.vocab_size:
            raise TokenizerError(f"{self.key.label}: its tokenizer belongs to another model")
        return ids or [self.tokenizer.bos_token_id or 0]

    @property
    def context(self) -> int:
        """Tokens of prompt and answer at most."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 4096)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end a text."""
        ids = self.model.generation_config.eos_token_id
        ids = ids if ids is not None else self.model.config.eos_token_id
        return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])


class ModelCache:
    """At most `limit` bytes of weights."""

    def __init__(
        self,
        catalog: Catalog,
        limit: int,
        load: Callable[[CatalogModel, ModelKey], LoadedModel] | None = None,
    ) -> None:
        self._catalog, self._limit = catalog, limit
        self._load = load or load_entry
        self._loaded: OrderedDict[ModelKey, LoadedModel] = OrderedDict()
        self._changed = threading.Condition()

    @property
    def keys(self) -> list[ModelKey]:
        """The models in memory, the least recently used first."""
        with self._changed:
            return list(self._loaded)

    @contextmanager
    def acquire(self, *keys: ModelKey) -> Iterator[list[LoadedModel]]:
        """The models, kept in memory until the block ends. Raises BusyError, VisitorError."""
        wanted = list(dict.fromkeys(keys))
        self._check_limit(wanted)
        acquired = self._load_all(wanted)
        try:
            yield [acquired[key] for key in keys]
        finally:
            with self._changed:
                for loaded in acquired.values():
                    loaded.users -= 1
                self._changed.notify_all()

    def _check_limit(self, wanted: list[ModelKey]) -> None:
        together = sum(map(self._size, wanted))
        if together > self._limit and len(wanted) > 1:
            raise VisitorError(
                f"these models take {readable_bytes(together)} together, and this Space holds "
                f"{readable_bytes(self._limit)}: choose fewer or smaller ones"
            )

    def _size(self, key: ModelKey) -> int:
        """Bytes of a loaded model, or at most of one that is not loaded yet."""
        if key in self._loaded:
            return self._loaded[key].weight_bytes
        inspection = self._catalog.model(key.name).inspection
        on_cpu = default_device() == "cpu"
        return max(inspection.bytes, inspection.parameters * (4 if on_cpu else _BYTES))

    def _load_all(self, wanted: list[ModelKey]) -> dict[ModelKey, LoadedModel]:
        """Evict what must go and load what is missing, one thread at a time."""
        deadline = time.monotonic() + _WAIT_SECONDS
        with self._changed:
            while not self._evict_for(wanted):
                if not self._changed.wait(deadline - time.monotonic()):
                    raise BusyError("all memory is in use by other visitors: try again in a minute")
            for key in wanted:
                if key not in self._loaded:
                    self._loaded[key] = self._load(self._catalog.model(key.name), key)
                self._loaded.move_to_end(key)
            for key in wanted:
                self._loaded[key].users += 1
            return {key: self._loaded[key] for key in wanted}

    def _evict_for(self, wanted: list[ModelKey]) -> bool:
        """Evict unused models until all wanted ones fit; whether they do."""
        others = [key for key in self._loaded if key not in wanted]
        total = sum(map(self._size, {*others, *wanted}))
        for key in others:
            if total <= self._limit:
                break
            if not self._loaded[key].users:
                total -= self._size(key)
                del self._loaded[key]
        in_use = any(self._loaded[key].users for key in self._loaded if key not in wanted)
        return total <= self._limit or not in_use  # a model above the limit is held alone


def can_quantize() -> bool:
    """Whether int8 weights are available here."""
    return bool(find_spec("optimum")) and bool(find_spec("optimum.quanto"))


def load_entry(entry: CatalogModel, key: ModelKey) -> LoadedModel:
    """Read a model's weights and tokenizer. Raises MinitronError."""
    source = entry.open()
    tokenizer = load_tokenizer(source)
    tokenizer.split_special_tokens = True  # "</s>" in a prompt is text
    model = load_model(source, device=default_device())
    if key.quantization is not None:
        model = quantized(model, key.quantization)
    vocabulary = repr(sorted(tokenizer.get_vocab().items()))
    digest = hashlib.sha256(vocabulary.encode()).hexdigest()
    return LoadedModel(key, entry, model, tokenizer, weight_bytes(model), digest)
