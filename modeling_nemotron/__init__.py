"""Nemotron for transformers: the model, its configuration and its chat prompt.

Importing this package changes nothing in transformers. `register()` adds our classes to the Auto
classes: `AutoModelForCausalLM.from_pretrained` of a Nemotron then returns ours. `unregister()`
removes them.

`CHAT_TEMPLATE` is the prompt of Nemotron-Mini-4B-Instruct, for a tokenizer's `chat_template`. Each
access reads it from chat_template.jinja. The model ends its turn with the token that opens the next
turn, so generation must stop at that token as well as at the end of text:

    tokenizer.chat_template = modeling_nemotron.CHAT_TEMPLATE
    model.generation_config = modeling_nemotron.chat_generation_config(model.config)
"""

# transformers is typed only in parts.
# mypy: allow-untyped-calls

from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_nemotron import NemotronConfig
from .modeling_nemotron import (
    CACHE_NAME,
    NemotronForCausalLM,
    NemotronForQuestionAnswering,
    NemotronForSequenceClassification,
    NemotronForTokenClassification,
    NemotronModel,
    NemotronPreTrainedModel,
)

CHAT_TEMPLATE: str
TURN_TOKEN_ID = 5  # `<extra_id_1>` in every Nemotron-4 vocabulary, which opens each turn

AUTO_CLASSES: dict[Any, type[NemotronPreTrainedModel]] = {
    AutoModel: NemotronModel,
    AutoModelForCausalLM: NemotronForCausalLM,
    AutoModelForSequenceClassification: NemotronForSequenceClassification,
    AutoModelForTokenClassification: NemotronForTokenClassification,
    AutoModelForQuestionAnswering: NemotronForQuestionAnswering,
}
_replaced: list[tuple[dict[Any, Any], Any, Any]] = []  # (registry, key, previous value or None)


def register() -> None:
    """Make every Auto class return our class for `model_type: nemotron`; may be called twice."""
    if _replaced:
        return
    _remember(CONFIG_MAPPING._extra_content, NemotronConfig.model_type)
    AutoConfig.register(NemotronConfig.model_type, NemotronConfig, exist_ok=True)
    for auto_class, model_class in AUTO_CLASSES.items():
        _remember(auto_class._model_mapping._extra_content, NemotronConfig)
        auto_class.register(NemotronConfig, model_class, exist_ok=True)


def unregister() -> None:
    """Undo `register`; without a `register` before it, do nothing."""
    while _replaced:
        registry, key, previous = _replaced.pop()
        if previous is None:
            del registry[key]
        else:
            registry[key] = previous


def _remember(registry: dict[Any, Any], key: Any) -> None:
    _replaced.append((registry, key, registry.get(key)))


def chat_generation_config(config: NemotronConfig) -> GenerationConfig:
    """The generation config of an instruct model: stop at `<extra_id_1>` (id 5) and at eos."""
    stops = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=[stop for stop in stops if stop not in (None, TURN_TOKEN_ID)]
        + [TURN_TOKEN_ID],
        pad_token_id=config.pad_token_id,
    )


def __getattr__(name: str) -> str:
    if name == "CHAT_TEMPLATE":
        return Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CACHE_NAME",
    "CHAT_TEMPLATE",
    "NemotronConfig",
    "NemotronForCausalLM",
    "NemotronForQuestionAnswering",
    "NemotronForSequenceClassification",
    "NemotronForTokenClassification",
    "NemotronModel",
    "NemotronPreTrainedModel",
    "chat_generation_config",
    "register",
    "unregister",
]
