"""Which other engines cannot run a model, so that card, command and search can say so.

The limits are facts of the families' table (`EngineLimit`), read from the engines' own code:
llama.cpp at llama-cpp-python 0.3.36 (src/models/*.cpp), mlx-lm 0.32.2 (mlx_lm/models/*.py), vLLM
0.32.0 (vllm/model_executor/models/*.py), transformers 4.57.6. SGLang 0.5.23 and TensorRT-LLM read
head_dim in every family. docs/engines.md lists them all, with the versions that they need.

    unsupported_engines(Architecture.from_config(config))   # {"llama.cpp": "its code for ..."}
"""

from collections.abc import Callable, Mapping
from typing import Any

from minitron.model.architecture import Architecture
from minitron.model.family import EngineLimit

# Whether sizes are beyond a limit of this name.
_SIZES: Mapping[str, Callable[[Architecture], bool]] = {
    "square": lambda model: model.num_attention_heads * model.head_dim != model.hidden_size,
    "derived": lambda model: model.hidden_size // model.num_attention_heads != model.head_dim,
}
_WORDS = {
    "square": "fixes {q} and {o} at {hidden} x {hidden}, but num_attention_heads x head_dim "
    "is {heads} x {head_dim}",
    "derived": "takes head_dim for hidden_size / num_attention_heads, {derived}, but it is "
    "{head_dim}",
    "tie_word_embeddings": "has no tied output embedding",
    "attention_bias": "has no bias of {o}",
    "mlp_bias": "has no bias of the MLP",
    "query_pre_attn_scalar": "takes {scalar} for query_pre_attn_scalar",
    "layers": "has a fixed order of the kinds of layers, and it is not the order of {what}",
    "rope_type": "knows the rotary scaling {known} alone, but it is {rope_type}",
}


def unsupported_engines(model: Architecture | Mapping[str, Any]) -> dict[str, str]:
    """Engine to reason, for each engine that cannot run a model of these sizes and switches.

    `model` is an architecture or a config.json, which also gives the rotary scaling;
    an engine that is not named has no limit that is known here. Cheap: a few comparisons, and words
    only where a limit is hit.
    """
    return {engine: reason for engine, (_, reason) in _beyond(model).items()}


def engines_closed_to(
    model: Architecture, source: Architecture, *, strictly: bool = False
) -> frozenset[str]:
    """The engines that do not load `model`, though they load its source.

    `strictly` counts those too that do not load the source because of its sizes, but none that a
    switch of the family keeps out at any size.
    """
    switches = {limit.engine for limit in model.family.engine_limits if limit.what in model.flags}
    excused = switches if strictly else unsupported_engines(source).keys()
    return frozenset(unsupported_engines(model).keys() - excused)


def load_notes(model: Architecture | Mapping[str, Any]) -> list[str]:
    """A sentence for each engine that does not load the model, or computes another of it, and one
    for those of which nobody here knows."""
    notes = [
        f"{engine} {'computes another model' if loads else 'does not load this model'}: {reason}."
        for engine, (loads, reason) in _beyond(model).items()
    ]
    sizes = model if isinstance(model, Architecture) else Architecture.from_config(model)
    if unread := sizes.family.unread_engines:
        names = f"{', '.join(unread[:-1])} and {unread[-1]}" if unread[1:] else unread[0]
        notes.append(
            f"Whether {names} can run a {sizes.model_type} is not known here: their code of the "
            "family was not read."
        )
    return notes


def engine_notes(config: Mapping[str, Any]) -> list[str]:
    """What a user of other engines has to know of this model, a sentence each."""
    unsupported = unsupported_engines(config)
    remarks = Architecture.from_config(config).family.engine_remarks.items()
    return load_notes(config) + [
        f"{tool}: {remark}." for tool, remark in remarks if tool not in unsupported
    ]


def _beyond(model: Architecture | Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
    """Engine to whether it loads the model all the same, and the reason that it cannot run it."""
    rope_type = "default" if isinstance(model, Architecture) else _rope_type(model)
    sizes = model if isinstance(model, Architecture) else Architecture.from_config(model)
    found: dict[str, tuple[bool, str]] = {}
    for limit in sizes.family.engine_limits:
        if limit.what == "rope_type":
            is_beyond = rope_type not in limit.rope_types
        elif limit.what == "query_pre_attn_scalar" or limit.layers is not None:
            is_beyond = not isinstance(model, Architecture) and _is_other(model, sizes, limit)
        elif limit.what in _SIZES:
            is_beyond = _SIZES[limit.what](sizes)
        else:
            is_beyond = limit.what in sizes.flags
        if is_beyond and limit.engine not in found:
            found[limit.engine] = limit.loads, _reason(sizes, limit, rope_type)
    return found


def _is_other(config: Mapping[str, Any], sizes: Architecture, limit: EngineLimit) -> bool:
    """Whether the config says something else than the engine takes for granted."""
    stated = config.get(limit.what)
    if limit.layers is None:
        return stated not in (None, _scalar(sizes, limit))
    return (stated or sizes.family.layer_lists[limit.what](config)) != limit.layers(config)


def _scalar(sizes: Architecture, limit: EngineLimit) -> int:
    """What the engine takes for query_pre_attn_scalar."""
    is_square = sizes.num_hidden_layers == limit.square_layers
    return sizes.hidden_size // sizes.num_attention_heads if is_square else sizes.head_dim


def _rope_type(config: Mapping[str, Any]) -> Any:
    """The kind of rotary scaling, in either form."""
    settings = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(settings, Mapping):
        return "default"
    return settings.get("rope_type") or settings.get("type") or "default"


def _reason(model: Architecture, limit: EngineLimit, rope_type: Any) -> str:
    words = _WORDS["layers" if limit.layers is not None else limit.what].format(
        what=limit.what,
        scalar=_scalar(model, limit),
        hidden=model.hidden_size,
        heads=model.num_attention_heads,
        head_dim=model.head_dim,
        derived=model.hidden_size // model.num_attention_heads,
        known=" and ".join(limit.rope_types),
        rope_type=rope_type,
        q=model.family.module_name("q"),
        o=model.family.module_name("o"),
    )
    return f"its code for {model.model_type} {words}"
