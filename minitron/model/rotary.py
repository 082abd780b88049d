"""Rotary settings of a config.json in both forms: nested as transformers 5 writes them, and flat.

transformers 4, vLLM, llama.cpp's converter and mlx-lm read `rope_theta` and `rope_scaling`, and
some of them use a default of their own where these are absent. Knows both forms, the values of
absent keys, and the keys that transformers 4 requires for each kind of scaling. Computes no angle.

    rotary_settings(config, family, head_dim=128)["rope_scaling"]   # {"rope_type": "llama3", ...}

Source: modeling_rope_utils.py of transformers 4.57.6 and 5.23.0.
"""

import math
from collections.abc import Mapping
from typing import Any

from minitron.errors import ArchitectureError
from minitron.model.family import Family

# Every kind of scaling that both transformers know, with the keys that it cannot do without.
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
_ORIGINAL = "original_max_position_embeddings"
_NEED_ORIGINAL = ("yarn", "llama3", "longrope")
_PARTIAL = "partial_rotary_factor"
_LISTS = ("short_factor", "long_factor")
# transformers 4 warns of whole numbers here.
_FLOATS = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
)
# Every key that is read here and written again, beside those of a family.
KEYS = ("rope_parameters", "rope_scaling", "rope_theta", _PARTIAL, _ORIGINAL)


def rotary_settings(config: Mapping[str, Any], family: Family, *, head_dim: int) -> dict[str, Any]:
    """The rotary settings of `config`, complete and in both forms; they replace all of KEYS.

    Raises ArchitectureError for two values of one setting, a kind of scaling that is not known or
    lacks a key, values of another type, settings that the family does not read, and settings that
    differ by kind of layer.
    """
    sliding = _sliding_theta(config, family)
    settings = _one_dict(_of_full_layers(config) if sliding else config)
    kind = settings.pop("rope_type", None)
    if kind is None:
        _check_unscaled(settings)
        kind = "default"
    kind = family.rotary.renamed.get(kind, kind) if isinstance(kind, str) else kind
    known = family.rotary.kinds or tuple(REQUIRED)
    if not isinstance(kind, str) or kind not in known:
        raise ArchitectureError(
            f"config.json says rope_type {kind!r}: it must be one of {', '.join(known)}"
        )
    theta = settings.pop("rope_theta", family.rotary.theta)
    _check_positive("rope_theta", theta)
    flat = {"rope_theta": theta, **_partial(settings.pop(_PARTIAL, None), family)}
    original = settings.pop(_ORIGINAL, None)
    _check_original(config, family, original)
    scaling = _scaling(kind, settings)
    above: dict[str, Any] = {}  # settings that transformers 4 reads beside rope_scaling
    if kind in _NEED_ORIGINAL:
        trained = _trained_length(config, kind, original or family.rotary.original)
        scaling[_ORIGINAL] = trained
        if kind == "longrope":
            _check_factors(scaling, int(head_dim * flat.get(_PARTIAL, 1)) // 2)
            above = _lengthened(scaling, _length(config, kind), trained)
        if family.rotary.original is not None:  # else its class takes that for the trained length
            above = {_ORIGINAL: trained}
    elif original is not None:
        above = {_ORIGINAL: original}
    nested: dict[str, Any] = {"rope_type": kind, **flat, **scaling}
    if sliding:
        others = {"rope_type": "default", "rope_theta": sliding[1]}
        nested = {"full_attention": nested, "sliding_attention": others}
        flat = {**flat, sliding[0]: sliding[1]}
    written = {"rope_parameters": nested, **flat, **above}
    if kind != "default":
        # Never with rope_theta, of which 4.57 warns.
        old = {"type": kind} if family.rotary.old_type else {}
        written["rope_scaling"] = {"rope_type": kind, **old, **scaling}
        # What follows from other keys is left out where transformers 4 takes few.
        brief = {key: {"type": kind, **scaling}.get(key) for key in family.rotary.old_keys}
        held = {*brief, *above}
        if kind == "longrope" and scaling["factor"] == _length(config, kind) / scaling[_ORIGINAL]:
            held.add("factor")
        if brief and None not in brief.values() and scaling.keys() <= held:
            written["rope_scaling"] = brief
    return written


def _sliding_theta(config: Mapping[str, Any], family: Family) -> tuple[str, float] | None:
    """The key and value of the theta of layers with a sliding window, where they have their own.

    Raises ArchitectureError for other settings of these layers.
    """
    if family.rotary.sliding_theta is None:
        return None
    _check_by_kind(config)
    key, theta = family.rotary.sliding_theta
    nested = config.get("rope_parameters")
    of_kind = nested.get("sliding_attention") if isinstance(nested, Mapping) else None
    settings = {"rope_type": "default", **(of_kind if isinstance(of_kind, Mapping) else {})}
    stated = (settings.pop("rope_theta", None), config.get(key))
    found = [value for value in stated if value is not None] or [theta]
    for value in found:
        _check_positive(key, value)
    if settings != {"rope_type": "default"} or len({*found}) > 1:
        raise ArchitectureError(
            f"config.json says {settings} and theta {found} for layers with a sliding window: "
            f"they have one {key} and no scaling"
        )
    return key, found[0]


def _of_full_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the rotary settings of layers without a sliding window for all layers."""
    nested = config.get("rope_parameters")
    if not isinstance(nested, Mapping) or "full_attention" not in nested:
        return dict(config)
    return {**config, "rope_parameters": nested["full_attention"]}


def _check_original(config: Mapping[str, Any], family: Family, original: Any) -> None:
    """Refuse a trained length that a class with one of its own does not read."""
    assumed = family.rotary.original
    if assumed is not None and config.get(_ORIGINAL) is None and original not in (None, assumed):
        raise ArchitectureError(
            f"config.json says {_ORIGINAL} {original!r} among its rotary settings alone, and this "
            f"family takes {assumed}: write it beside them"
        )


def _check_by_kind(config: Mapping[str, Any]) -> None:
    """Refuse what readers of a family with settings for each kind of layer take for different
    ones, or for none. Raises ArchitectureError."""
    nested, scaling = config.get("rope_parameters"), config.get("rope_scaling")
    if isinstance(nested, Mapping) and nested and "full_attention" not in nested:
        raise ArchitectureError(
            "config.json has one rope_parameters for all layers: this family has one for "
            "full_attention and one for sliding_attention, write those"
        )
    if isinstance(scaling, Mapping) and "type" in scaling and "rope_type" not in scaling:
        raise ArchitectureError(
            f"config.json says type {scaling['type']!r} in its rope_scaling: call it rope_type"
        )


def lengthened_context(config: Mapping[str, Any], context: int) -> int:
    """The longest sequence that the rotary scaling is for; `context` is max_position_embeddings.

    Other kinds than these have max_position_embeddings lengthened already.
    """
    settings = _one_dict(_of_full_layers(config))
    if settings.get("rope_type") not in ("linear", "dynamic", "yarn"):
        return context
    trained = settings.get(_ORIGINAL) or context
    return max(context, int(trained * settings.get("factor", 1)))


def _one_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting that is not null, by its name in rope_parameters, from all three places."""
    found: dict[str, Any] = {}
    places: dict[str, str] = {}
    for place in ("rope_parameters", "rope_scaling", ""):
        for key, value in _settings_in(config, place):
            if key in found and found[key] != value:
                raise ArchitectureError(
                    f"config.json says {key} {value!r}{_in(place)}, but {found[key]!r}"
                    f"{_in(places[key])}: keep the right one"
                )
            found[key], places[key] = value, place
    return found


def _settings_in(config: Mapping[str, Any], place: str) -> list[tuple[str, Any]]:
    """The settings of one dict, or with "" those at the top of config.json."""
    if not place:
        top = ("rope_theta", _PARTIAL, _ORIGINAL)
        return [(key, config[key]) for key in top if config.get(key) is not None]
    settings = config.get(place)
    if settings is None:
        return []
    if not isinstance(settings, Mapping):
        raise ArchitectureError(f"config.json says {place} {settings!r}: it must be a JSON object")
    layered = [
        str(key)
        for key, value in settings.items()
        if isinstance(value, Mapping) or str(key).endswith("_attention")
    ]
    if layered:
        raise ArchitectureError(
            f"config.json has {place} for each kind of layer ({', '.join(layered)}): this family "
            "has one for all layers, write that"
        )
    known = [(str(key), value) for key, value in settings.items() if value is not None]
    return [("rope_type" if key == "type" else key, value) for key, value in known]


def _in(place: str) -> str:
    return f" in its {place}" if place else ""


def _partial(value: Any, family: Family) -> dict[str, Any]:
    """The part of a head that is rotated, for a family that reads it."""
    meant = family.rotary.partial
    if value is None:
        return {} if meant is None else {_PARTIAL: meant}
    _check_positive(_PARTIAL, value)
    if meant is not None:
        return {_PARTIAL: value}
    if value != 1:
        raise ArchitectureError(
            f"config.json says {_PARTIAL} {value!r}, but a {family.model_type} rotates whole "
            "heads: remove it, or name the family that these weights are of"
        )
    return {}


def _check_unscaled(settings: Mapping[str, Any]) -> None:
    """Refuse settings of a scaling without rope_type: readers assume different types."""
    scaling = [key for key in (*_FLOATS, *_LISTS) if key in settings]
    if scaling:
        raise ArchitectureError(
            f"config.json says {scaling[0]} {settings[scaling[0]]!r} without rope_type: add it"
        )


def _scaling(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of this kind, with numbers of the type that transformers 4 wants."""
    if kind == "default":
        return {}  # they have no meaning, and llama.cpp's converter would take a factor for linear
    missing = [key for key in REQUIRED[kind] if key not in settings]
    if missing:
        raise ArchitectureError(
            f"config.json says rope_type {kind!r} without {', '.join(missing)}: add it"
        )
    scaling = dict(settings)
    for key in _FLOATS:
        if key in scaling:
            _check_positive(key, scaling[key])
            scaling[key] = float(scaling[key])
    return scaling


def _check_positive(key: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise ArchitectureError(
            f"config.json says {key} {value!r}: it must be a number above 0 and finite"
        )


def _length(config: Mapping[str, Any], kind: str) -> int:
    """The longest sequence, from which some kinds are scaled."""
    return _whole(config.get("max_position_embeddings"), "max_position_embeddings", kind)


def _trained_length(config: Mapping[str, Any], kind: str, original: Any) -> int:
    """The length before scaling: max_position_embeddings where none is given."""
    return _length(config, kind) if original is None else _whole(original, _ORIGINAL, kind)


def _whole(value: Any, key: str, kind: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArchitectureError(
            f"config.json says {key} {value!r}: rope_type {kind!r} needs a whole number above 0"
        )
    return value


def _check_factors(scaling: Mapping[str, Any], pairs: int) -> None:
    """Refuse lists that are not of one number for each rotated pair of dimensions."""
    for key in _LISTS:
        values = scaling[key]
        if not isinstance(values, list) or len(values) != pairs:
            raise ArchitectureError(
                f"config.json says {key} {values!r}: it must be a list of {pairs} numbers"
            )
        for value in values:
            _check_positive(key, value)


def _lengthened(scaling: dict[str, Any], length: int, trained: int) -> dict[str, Any]:
    """Complete longrope, so that both transformers scale attention alike.

    transformers 4 reads the trained length beside rope_scaling only, and where it finds it there,
    uses length / trained as the factor; transformers 5 uses `factor` where there is one.
    """
    factor = scaling.setdefault("factor", max(1.0, length / trained))
    if trained == length:
        return {}
    if factor != length / trained and "attention_factor" not in scaling:
        lengthening = 1.0 if factor <= 1 else 1 + math.log(factor) / math.log(trained)
        scaling["attention_factor"] = math.sqrt(lengthening)
    return {_ORIGINAL: trained}
