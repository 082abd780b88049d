"""Which other engines cannot open a model, so that card, command and search can say so.

The limits are facts of the families' table (`EngineLimit`), read from the engines' own code:
llama.cpp at llama-cpp-python 0.3.36 (src/models/*.cpp), mlx-lm 0.32.2 (mlx_lm/models/*.py), vLLM
0.32.0 (vllm/model_executor/models/*.py). SGLang and TensorRT-LLM read head_dim in every family.

    unsupported_engines(Architecture.from_config(config))   # {"llama.cpp": "its code for ..."}
"""

from collections.abc import Callable, Mapping
from typing import Any

from minitron.architecture import Architecture

# Whether a model is beyond a limit of this name, and the words for it.
_BEYOND: Mapping[str, Callable[[Architecture], bool]] = {
    "square": lambda model: model.num_attention_heads * model.head_dim != model.hidden_size,
    "derived": lambda model: model.hidden_size // model.num_attention_heads != model.head_dim,
}
_WORDS = {
    "square": "fixes q_proj and o_proj at {hidden} x {hidden}, but num_attention_heads x head_dim "
    "is {heads} x {head_dim}",
    "derived": "takes head_dim for hidden_size / num_attention_heads, {derived}, but it is "
    "{head_dim}",
    "tie_word_embeddings": "has no tied output embedding",
    "attention_bias": "has no bias of o_proj",
    "mlp_bias": "has no bias in the MLP",
}


def unsupported_engines(model: Architecture | Mapping[str, Any]) -> dict[str, str]:
    """Engine to reason, for each engine that does not load a model of these sizes and switches.

    `model` is an architecture or a config.json; an engine that is not named has no limit that is
    known here. Cheap: a few comparisons, and words only where a limit is hit.
    """
    if not isinstance(model, Architecture):
        model = Architecture.from_config(model)
    found: dict[str, str] = {}
    for limit in model.family.engine_limits:
        beyond = _BEYOND.get(limit.what)
        if (limit.what in model.flags) if beyond is None else beyond(model):
            found.setdefault(limit.engine, _reason(model, limit.what))
    return found


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
    """A sentence for each engine that does not load the model."""
    unsupported = unsupported_engines(model).items()
    return [f"{engine} does not load this model: {reason}." for engine, reason in unsupported]


def engine_notes(config: Mapping[str, Any]) -> list[str]:
    """What a user of other engines has to know of this model, a sentence each."""
    model = Architecture.from_config(config)
    unsupported = unsupported_engines(model)
    remarks = model.family.engine_remarks.items()
    return load_notes(model) + [
        f"{tool}: {remark}." for tool, remark in remarks if tool not in unsupported
    ]


def _reason(model: Architecture, what: str) -> str:
    words = _WORDS[what].format(
        hidden=model.hidden_size,
        heads=model.num_attention_heads,
        head_dim=model.head_dim,
        derived=model.hidden_size // model.num_attention_heads,
    )
    return f"its code for {model.model_type} {words}"
