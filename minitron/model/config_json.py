"""A config.json at other sizes, under today's key names, and the token ids in it.

A pad token is often added to a tokenizer without a row for it. The id is never used by the model,
but transformers refuses to build an embedding that pads with a row outside itself.

    resized_config(config, architecture.resized(hidden_size=192), kept_layers=(0, 1, 3))
    with_usable_pad({"pad_token_id": 32000}, 32000)   # {"pad_token_id": None}
"""

from collections.abc import Mapping
from typing import Any

from minitron.errors import ArchitectureError
from minitron.model.architecture import Architecture, modern_config
from minitron.model.family import AXIS_KEYS
from minitron.model.rotary import KEYS as ROTARY_KEYS
from minitron.model.rotary import rotary_settings

PAD = "pad_token_id"


def resized_config(
    config: Mapping[str, Any],
    architecture: Architecture,
    kept_layers: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """`config` at the sizes of `architecture`, with per-layer lists cut to `kept_layers`.

    The first layers are kept unless others are given; at a config's own sizes, all of them.

    Old key names become today's, `head_dim` is always written, and what only a custom class would
    need (`auto_map`) is left out. Rotary settings are written in both forms, nested for
    transformers 5 and flat for transformers 4, vLLM and llama.cpp.
    """
    family = architecture.family
    modern = with_usable_pad(modern_config(config, family), architecture.vocab_size)
    modern.pop("auto_map", None)
    sizes = {key: architecture.size(axis) for axis, key in AXIS_KEYS.items()}
    resized = {**modern, **sizes, "architectures": [family.architecture]}
    if kept_layers is None:
        kept_layers = tuple(range(architecture.num_hidden_layers))
    for key, values_of in family.layer_lists.items():
        values = _listed(modern, key) or values_of(modern)
        resized[key] = [values[layer] for layer in kept_layers]
    rotary = rotary_settings(modern, family, head_dim=architecture.head_dim)
    return {**{key: value for key, value in resized.items() if key not in ROTARY_KEYS}, **rotary}


def check_rotary(config: Mapping[str, Any]) -> None:
    """Refuse rotary settings that readers of a config.json would take for different ones.

    Raises ArchitectureError as `rotary_settings` does.
    """
    architecture = Architecture.from_config(config)
    family = architecture.family
    rotary_settings(modern_config(config, family), family, head_dim=architecture.head_dim)


def has_row(token: object, vocab_size: int) -> bool:
    """Whether an id may be a row; torch counts negative ones from the end."""
    return type(token) is not int or -vocab_size <= token < vocab_size


def with_usable_pad(settings: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """`settings`, with a pad token outside the vocabulary named as none."""
    usable = has_row(settings.get(PAD), vocab_size)
    return dict(settings) if usable else {**settings, PAD: None}


def _listed(config: Mapping[str, Any], key: str) -> list[Any] | None:
    """The list in the config, which earlier ones do not have.

    Raises ArchitectureError for a list of another length than the layers.
    """
    layers, values = config["num_hidden_layers"], config.get(key)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != layers:
        raise ArchitectureError(
            f"config.json says {key} {values!r}: it must be a list of one value for each of "
            f"{layers} layers"
        )
    return values
