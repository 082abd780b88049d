"""The metadata of a GGUF file as a config.json, and a config.json as such metadata.

Knows llama.cpp's keys (llama-arch.cpp) and which of them change what is computed: one that is not
known here is refused, never passed over. Does not know tokenizers.

    config_from_gguf(read_gguf(file))["hidden_size"]
    gguf_metadata(config, context_length=8192)["llama.embedding_length"]
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from minitron.conversion.gguf_file import GgufFile
from minitron.conversion.gguf_tensors import EMBEDDING, OUTPUT, gguf_of
from minitron.errors import SourceError, TargetError
from minitron.model.architecture import MAX_LAYERS, Architecture
from minitron.model.families import FAMILIES
from minitron.model.family import Family

# Behind the name of the architecture: llama.cpp's key and that of config.json.
_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
_HEAD_DIM = ("attention.key_length", "attention.value_length")
_EPSILON = {
    "rms": "attention.layer_norm_rms_epsilon",
    "layer": "attention.layer_norm_epsilon",
}
_ROTATED, _THETA = "rope.dimension_count", "rope.freq_base"
_SCALING = "rope.scaling."
FREQUENCIES = "rope_freqs.weight"  # llama3's scaling: what divides the frequency of each pair
_YARN = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
# Values with which a key changes nothing.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.finetuned": (True,),  # false turns rotation off in a Granite
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "tensor_data_layout": ("Meta AI original pth",),  # how rows are paired: the family's table
}
_UNREAD = ("vocab_size",)  # the embedding's rows count
_TOKENS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
_LLAMA_3_1 = (8192, 1.0, 4.0)  # original_max_position_embeddings, low and high_freq_factor


def config_from_gguf(file: GgufFile) -> dict[str, Any]:
    """The config.json of the model in a file. Raises SourceError for what no family here holds."""
    if (parts := file.metadata.get("split.count", 1)) not in (0, 1):
        raise SourceError(
            f"{file.name} is one of {parts} parts: join them with llama.cpp's llama-gguf-split "
            "--merge"
        )
    if (kind := file.metadata.get("general.type", "model")) != "model":
        raise SourceError(f"{file.name} holds a GGUF {kind!r:.40}: name a model")
    stored = file.metadata.get("general.architecture")
    families = [
        each for each in FAMILIES.values() if each.gguf and each.gguf.architecture == stored
    ]
    if not families:
        known = dict.fromkeys(each.gguf.architecture for each in FAMILIES.values() if each.gguf)
        raise SourceError(
            f"{file.name} is of llama.cpp's architecture {stored!r:.60}; known here: "
            f"{', '.join(known)}"
        )
    configs = [_Reading(file, family).config() for family in families]
    # The same code of llama.cpp runs several families: the first whose class takes the sizes.
    accepted = (each for each in configs if Architecture.from_config(each).is_accepted)
    return next(accepted, configs[0])


def gguf_metadata(config: Mapping[str, Any], *, context_length: int) -> dict[str, Any]:
    """The keys of `config`, a config.json as minitron writes it. A float is a float32 in the file.

    Raises TargetError for a rotary scaling that llama.cpp's converter does not store.
    """
    architecture = Architecture.from_config(config)
    family, gguf = architecture.family, gguf_of(architecture)
    rotary = config["rope_parameters"]
    rotated = int(architecture.head_dim * rotary.get("partial_rotary_factor", 1))
    found: dict[str, Any] = {key: config[name] for key, name in _SIZES.items()}
    found |= {"context_length": context_length, "vocab_size": architecture.vocab_size}
    found |= dict.fromkeys(_HEAD_DIM, architecture.head_dim)
    found[_EPSILON[family.norm.kind]] = float(config[family.norm.epsilon])
    found |= {key: float(config[name]) for key, name in gguf.numbers.items()}
    found |= {_ROTATED: rotated, _THETA: float(rotary["rope_theta"]), **_scaling_keys(config)}
    ids = {stored: _first(config.get(name)) for name, stored in _TOKENS.items()}
    return {
        **{f"{gguf.architecture}.{key}": value for key, value in found.items()},
        **{key: token for key, token in ids.items() if token is not None},
    }


def rope_frequencies(config: Mapping[str, Any]) -> torch.Tensor | None:
    """The tensor that holds llama3's scaling, under FREQUENCIES; None for any other scaling."""
    rotary, head_dim = config["rope_parameters"], config["head_dim"]
    if rotary["rope_type"] != "llama3":
        return None
    original, low = rotary["original_max_position_embeddings"], rotary["low_freq_factor"]
    known = (original, low, rotary["high_freq_factor"])
    return _llama3_divisors(rotary["rope_theta"], head_dim, rotary["factor"], known)


class _Reading:
    """The metadata of a file, read as those of one family."""

    def __init__(self, file: GgufFile, family: Family) -> None:
        assert family.gguf is not None
        self.file, self.family = file, family
        prefix = f"{family.gguf.architecture}."
        self._found = {
            key.removeprefix(prefix): value
            for key, value in file.metadata.items()
            if key.startswith(prefix)
        }
        self._numbers = family.gguf.numbers
        self._read = set(_UNREAD)

    def config(self) -> dict[str, Any]:
        """The config.json. Raises SourceError."""
        sizes = {name: self._size(key) for key, name in _SIZES.items() if "kv" not in key}
        heads = sizes["num_attention_heads"]
        sizes["num_key_value_heads"] = self._size("attention.head_count_kv", heads)
        head_dim = self._size(_HEAD_DIM[0], sizes["hidden_size"] // heads)
        if self._size(_HEAD_DIM[1], head_dim) != head_dim or head_dim % 2:
            raise self._refused(f"a head_dim of {head_dim}, which must be even, and that of values")
        if sizes["num_hidden_layers"] > min(len(self.file.tensors), MAX_LAYERS):
            raise self._refused(f"block_count {sizes['num_hidden_layers']}, more than tensors")
        embedding = self.file.tensors.get(EMBEDDING)
        if embedding is None:
            raise SourceError(f"{self.file.name} has no {EMBEDDING}: it is not a language model")
        epsilon = _EPSILON[self.family.norm.kind]
        config = {
            "architectures": [self.family.architecture],
            "model_type": self.family.model_type,
            **sizes,
            "head_dim": head_dim,
            "vocab_size": embedding.shape[0],
            self.family.norm.epsilon: self._number(epsilon, None),
            "rope_parameters": self._rotary(head_dim),
            "tie_word_embeddings": OUTPUT not in self.file.tensors,
            **{name: self._number(key, None) for key, name in self._numbers.items()},
            "sliding_window": None,  # some config classes have one where the key is absent
            **{flag: self._has_bias(flag) for flag in self.family.bias_flags},
            **{name: self.file.metadata.get(key) for name, key in _TOKENS.items()},
        }
        self._refuse_unread()
        return config

    def _has_bias(self, flag: str) -> bool:
        part = "q" if flag == self.family.qkv_bias else "up"
        stored = {"q": "attn_q", "up": "ffn_up"}[part]
        return f"blk.0.{stored}.bias" in self.file.tensors

    def _rotary(self, head_dim: int) -> dict[str, Any]:
        rotated = self._size(_ROTATED, head_dim)
        theta = self._number(_THETA, 10000.0)
        settings = {"rope_theta": theta, **self._rope_scaling(theta, head_dim)}
        if self.family.rotary.partial is not None:
            return {**settings, "partial_rotary_factor": rotated / head_dim}
        if rotated != head_dim:
            raise self._refused(f"{_ROTATED} {rotated}, but a head_dim of {head_dim}")
        return settings

    def _rope_scaling(self, theta: float, head_dim: int) -> dict[str, Any]:
        kind = self._take(f"{_SCALING}type", "none")
        factor = self._number(f"{_SCALING}factor", 0.0)
        linear = self._number("rope.scale_linear", 0.0)  # of early files
        trained = self._size(f"{_SCALING}original_context_length", 0)
        yarn = {name: self._number(f"{_SCALING}{key}", 0.0) for name, key in _YARN.items()}
        divisors = self.file.tensors.get(FREQUENCIES)
        if divisors is not None:
            if kind != "none" or divisors.shape != (head_dim // 2,):
                raise self._refused(f"{FREQUENCIES} {list(divisors.shape)} beside {kind}")
            return self._llama3(divisors.read().double(), theta, head_dim)
        if kind == "none":
            return {"rope_type": "linear", "factor": linear} if linear else _UNSCALED
        if kind not in ("linear", "yarn") or not factor:
            raise self._refused(f"rope.scaling.type {kind!r:.40} with a factor of {factor}")
        settings = {"rope_type": kind, "factor": factor}
        if kind == "yarn":
            settings |= {name: value for name, value in yarn.items() if value}
            settings |= {"original_max_position_embeddings": trained} if trained else {}
        return settings

    def _llama3(self, divisors: torch.Tensor, theta: float, head_dim: int) -> dict[str, Any]:
        """The settings with which the scaling is the one of this tensor."""
        factor = divisors.max().item()
        for known in (_LLAMA_3_1, _settings_of(divisors, theta, head_dim)):
            if known is None:
                continue
            made = _llama3_divisors(theta, head_dim, factor, known)
            if torch.allclose(made.double(), divisors, rtol=1e-4):
                original, low, high = known
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }
        raise self._refused(f"a {FREQUENCIES} that is not llama3's scaling")

    def _size(self, key: str, default: int | None = None) -> int:
        value = self._take(key, default)
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]  # one for each layer, all alike
        least = 0 if default == 0 else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._refused(f"{key} {value!r:.60}; it must be one whole number above 0")
        return value

    def _number(self, key: str, default: float | None) -> float:
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
            raise self._refused(f"{key} {value!r:.60}; it must be a number and finite")
        return float(value)

    def _take(self, key: str, default: Any) -> Any:
        self._read.add(key)
        return self._found.get(key, default)

    def _refuse_unread(self) -> None:
        for key, value in self._found.items():
            if key not in self._read and value not in _WITHOUT_EFFECT.get(key, ()):
                raise self._refused(f"{key} {value!r:.60}, with which nothing is computed here")

    def _refused(self, what: str) -> SourceError:
        return SourceError(
            f"{self.file.name} is a {self.family.model_type} that has {what}: take another file, "
            "or the model's Hub folder"
        )


def _first(token: object) -> object:
    """A token id; of several that end a text, the first."""
    return token[0] if isinstance(token, list) and token else token


_UNSCALED = {"rope_type": "default"}


def _scaling_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """llama.cpp's keys of the rotary scaling. Raises TargetError for one that it does not store."""
    architecture, rotary = Architecture.from_config(config), config["rope_parameters"]
    kind = rotary["rope_type"]
    if kind not in (known := gguf_of(architecture).rope_types):
        raise TargetError(
            f"rope_type is {kind!r}: llama.cpp's converter stores {', '.join(known)} of a "
            f"{architecture.model_type}"
        )
    if kind in ("default", "llama3"):  # the second is a tensor
        return {f"{_SCALING}type": "none"} if kind == "default" else {}
    factor = rotary["factor"]
    found: dict[str, Any] = {"type": kind, "factor": float(factor)}
    if kind == "yarn":
        usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        if not math.isclose(rotary.get("attention_factor", usual), usual, rel_tol=1e-6):
            raise TargetError(
                f"attention_factor is {rotary['attention_factor']}: llama.cpp scales yarn's "
                f"attention by {usual:.6f}"
            )
        found["original_context_length"] = rotary["original_max_position_embeddings"]
        found |= {key: float(rotary[name]) for name, key in _YARN.items() if name in rotary}
    return {f"{_SCALING}{key}": value for key, value in found.items()}


def _llama3_divisors(
    theta: float, head_dim: int, factor: float, known: tuple[int, float, float]
) -> torch.Tensor:
    """What divides each frequency: 1 for short waves, `factor` for long ones, and all between."""
    original, low, high = known
    waves = _wave_lengths(theta, head_dim)
    smooth = ((original / waves - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()


def _settings_of(
    divisors: torch.Tensor, theta: float, head_dim: int
) -> tuple[int, float, float] | None:
    """The settings that explain the divisors between 1 and the largest, two of which are needed.

    A common factor of the three settings changes nothing: low_freq_factor is set to 1.
    """
    factor = divisors.max()
    between = (divisors > 1.0001) & (divisors < factor * 0.9999)
    if between.sum() < 2:
        return None
    smooth = (1 / divisors[between] - 1 / factor) / (1 - 1 / factor)
    short, *_, long = (1 / _wave_lengths(theta, head_dim)[between]).tolist()
    slope = (smooth[0].item() - smooth[-1].item()) / (short - long)
    offset = slope * short - smooth[0].item()
    if slope <= 0 or offset <= 0:
        return None
    return round(slope / offset), 1.0, round(1 + 1 / offset, 4)


def _wave_lengths(theta: float, head_dim: int) -> torch.Tensor:
    return 2 * math.pi * theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
