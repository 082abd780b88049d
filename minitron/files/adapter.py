"""Adapter: what a folder of PEFT holds instead of a model, and how a model is made of it.

raise SourceError(merge_advice("me/my-lora", settings))
"""

from collections.abc import Mapping
from typing import Any

FILE = "adapter_config.json"


def merge_advice(name: str, settings: Mapping[str, Any]) -> str:
    """Why `name` is no model, and what to do; `settings` are those of its adapter_config.json."""
    kind, base = settings.get("peft_type", "PEFT"), settings.get("base_model_name_or_path")
    return (
        f"{name:.80} is a {kind!s:.20} adapter of {base!s:.80}, not a whole model: merge it with "
        "peft, AutoPeftModelForCausalLM.from_pretrained(ADAPTER).merge_and_unload()"
        ".save_pretrained(OUT), save the base model's tokenizer to OUT too, and name OUT"
    )
