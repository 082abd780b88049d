"""Reads the settings of a NeMo checkpoint, under NeMo 1's names whichever NeMo wrote them.

Reads `model_config.yaml` of a `.nemo` (NeMo 1) and `context/model.yaml` of a NeMo 2 folder, with
the defaults of NeMo 2's dataclasses; `nemo_to_hub` interprets the settings. Two keys may share one
value, where one refers to the other: read values by name, do not walk them.

    >>> read_settings("hidden_size: 64\\nffn_hidden_size: ${multiply:4, ${.hidden_size}}", "yaml")
    {'hidden_size': 64, 'ffn_hidden_size': 256}
"""

from collections.abc import Mapping
from typing import Any

from minitron.conversion.interpolation import KeyPath, resolve
from minitron.conversion.nemo_settings import ACTIVATIONS, NEMO2_NAMES
from minitron.errors import ArchitectureError, SourceError
from minitron.files.plain_yaml import read_yaml, short_repr

# Sections about training. They refer to the trainer's settings, which are not in the archive;
# nothing here reads numbers from them.
TRAINING = frozenset({"data", "optim", "precision", "trainer", "exp_manager", "inference", "peft"})

# Defaults of the dataclasses, as of NeMo 2.4: megatron-core's TransformerConfig and NeMo's
# GPTConfig (nemo/collections/llm/gpt/model/base.py), then those of nemotron.py on top of it.
_GPT: Mapping[str, Any] = {
    "seq_length": 1024,
    "position_embedding_type": "learned_absolute",
    "rotary_percent": 1.0,
    "rotary_base": 10000,
    "share_embeddings_and_output_weights": True,
    "make_vocab_size_divisible_by": 128,
    "normalization": "LayerNorm",
    "layernorm_epsilon": 1e-5,
    "layernorm_zero_centered_gamma": False,
    "add_bias_linear": True,
    "add_qkv_bias": False,
    "activation_func": "gelu",
    "bias_activation_fusion": False,
    "gated_linear_unit": False,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "init_method_std": 0.02,
    "num_query_groups": None,
    "kv_channels": None,
    "ffn_hidden_size": None,
}
_NEMOTRON: Mapping[str, Any] = {
    **_GPT,
    "seq_length": 4096,
    "position_embedding_type": "rope",
    "rotary_percent": 0.5,
    "share_embeddings_and_output_weights": False,
    "layernorm_zero_centered_gamma": True,
    "add_bias_linear": False,
    "activation_func": "squared_relu",
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}


def _shape(
    layers: int, hidden: int, ffn: int, heads: int, groups: int | None, head: int | None, std: float
) -> Mapping[str, Any]:
    return {
        **_NEMOTRON,
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": ffn,
        "num_attention_heads": heads,
        "num_query_groups": groups,
        "kv_channels": head,
        "init_method_std": std,
    }


_LLAMA: Mapping[str, Any] = {  # nemo/collections/llm/gpt/model/llama.py
    **_GPT,
    "seq_length": 4096,
    "position_embedding_type": "rope",
    "share_embeddings_and_output_weights": False,
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "activation_func": "silu",
    "gated_linear_unit": True,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
NEMO2_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "GPTConfig": _GPT,
    "LlamaConfig": _LLAMA,
    "NemotronConfig": _shape(32, 3072, 9216, 24, 8, 128, 0.0134),  # the 4B's
    "Nemotron3Config4B": _shape(32, 3072, 9216, 24, 8, 128, 0.0134),
    "Nemotron3Config8B": _shape(32, 4096, 16384, 32, None, None, 0.010),
    "Nemotron3Config22B": _shape(40, 6144, 24576, 48, None, None, 0.008),
    "Nemotron4Config15B": _shape(32, 6144, 24576, 48, 8, None, 0.0134),
    "Nemotron4Config340B": _shape(96, 18432, 73728, 96, 8, None, 0.0063),
}
_MODELS = ("NemotronModel", "GPTModel", "LlamaModel")
_ACTIVATIONS = {known.nemo2.rpartition(".")[2]: known.nemo for known in ACTIVATIONS}


def read_settings(text: str, where: str) -> dict[str, Any]:
    """The `model` section of a NeMo 1 config, every reference resolved.

    A reference without a target stays as text in the sections about training. Raises SourceError
    for any other, and for text that is not YAML of plain values.
    """
    root = _section(read_yaml(text, where), where)
    if not isinstance(root.get("model"), dict):
        return _by_name(resolve(root, where, _is_training))
    whole = resolve(root, where, lambda path: path[0] != "model" or _is_training(path[1:]))
    return _by_name(whole["model"])


def read_nemo2_settings(text: str, where: str) -> dict[str, Any]:
    """A NeMo 2 model, under NeMo 1's names, with the defaults of its dataclass.

    Raises SourceError for what is not a GPT model, ArchitectureError for an unknown dataclass.
    """
    root = resolve(_section(read_yaml(text, where), where), where, _is_training)
    model = _short_name(root)
    if model not in _MODELS:
        raise SourceError(
            f"{where} has _target_ {short_repr(root.get('_target_'))}: known are "
            f"{', '.join(_MODELS)}"
        )
    # NemotronModel without a config makes a NemotronConfig; GPTModel requires a config.
    config = _section(root.get("config") or {"_target_": "NemotronConfig"}, f"{where}: config")
    dataclass = _short_name(config)
    if dataclass not in NEMO2_DEFAULTS:
        raise ArchitectureError(
            f"{where} has a config of type {short_repr(config.get('_target_'))}: "
            f"known are {', '.join(NEMO2_DEFAULTS)}"
        )
    fields = {key: _plain(value) for key, value in config.items() if not key.startswith("_")}
    return _as_nemo1({**NEMO2_DEFAULTS[dataclass], **fields}, root)


def _as_nemo1(fields: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """A dataclass's fields under NeMo 1's names, with the tokenizer as NeMo 1 describes it."""
    settings = {NEMO2_NAMES.get(name, name): value for name, value in fields.items()}
    activation = settings["activation"]
    if isinstance(activation, str):
        settings["activation"] = _ACTIVATIONS.get(activation, activation)
    settings["tokenizer"] = _tokenizer(root.get("tokenizer"))
    if isinstance(root.get("data"), dict):
        settings["data"] = root["data"]
    return settings


def _tokenizer(section: Any) -> dict[str, Any]:
    """NeMo 2's tokenizer object as NeMo 1's `tokenizer` section."""
    if not isinstance(section, dict):
        return {}
    libraries = {
        "SentencePieceTokenizer": "sentencepiece",
        "AutoTokenizer": "huggingface",
        "TiktokenTokenizer": "tiktoken",
    }
    library = libraries.get(_short_name(section))
    return {
        "library": library,
        "type": section.get("pretrained_model_name") if library == "huggingface" else None,
        "model": section.get("model_path"),
        "vocab_file": section.get("vocab_file"),
        "merge_file": section.get("merges_file"),
    }


def _plain(value: Any) -> Any:
    """The short name of a function or dtype, which is written {_target_: a.b.name, ...}."""
    return _short_name(value) if isinstance(value, dict) and "_target_" in value else value


def _short_name(section: Mapping[str, Any]) -> str:
    """The last part of a section's _target_."""
    target = section.get("_target_")
    return target.rpartition(".")[2] if isinstance(target, str) else ""


def _is_training(path: KeyPath) -> bool:
    return bool(path) and path[0] in TRAINING


def _section(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SourceError(f"{where} holds {short_repr(value)}, not a mapping of settings")
    return _by_name(value)


def _by_name(section: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in section.items()}
