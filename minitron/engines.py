"""What other engines get wrong about a model, so that command and card can say so.

engine_notes({"model_type": "nemotron", "hidden_size": 4096, "num_attention_heads": 48, ...})
"""

from collections.abc import Mapping
from typing import Any

from minitron.architecture import Architecture


def engine_notes(config: Mapping[str, Any]) -> list[str]:
    """One sentence for each engine that reads this folder wrongly; none for most models.

    Source: llama.cpp's convert_hf_to_gguf.py and nemotron.cpp (pull requests 23343 and 23391).
    """
    architecture = Architecture.from_config(config)
    if architecture.model_type != "nemotron":
        return []
    notes = []
    heads, head_dim = architecture.num_attention_heads, architecture.head_dim
    if heads * head_dim != architecture.hidden_size:
        factor = config.get("partial_rotary_factor", 0.5)
        right = int(head_dim * factor)
        wrong = int(factor * architecture.hidden_size) // heads
        notes.append(
            f"llama.cpp's converter writes rope.dimension_count {wrong} for this model, because "
            f"it takes head_dim for hidden_size / heads; right is {right}: set it in the GGUF file."
        )
    if architecture.tie_word_embeddings:
        notes.append(
            "llama.cpp does not load this model: its Nemotron has no tied output embedding."
        )
    return notes
