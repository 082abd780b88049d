"""How Megatron and NeMo checkpoints spell the tensors of a GPT model: each spelling to one name.

The names are those of `megatron_names`: no prefix, norms apart from the matrices that Transformer
Engine fuses them with, Megatron-core's words for what older code called otherwise.

    >>> canonical_name("model.language_model.encoder.layers.3.mlp.dense_h_to_4h.weight")
    'decoder.layers.3.mlp.linear_fc1.weight'
"""

import re

from minitron.conversion.megatron_names import FUSED_NORMS, LAYERS
from minitron.errors import SourceError

_PREFIX = re.compile(r"^(?:model\.|module\.)+")
_NO_WEIGHT = re.compile(
    r"^(?:optimizer|chained_[0-9]+)\."
    r"|_extra_state|inv_freq$"
    r"|^word_embeddings(?:_for_head)?\."  # the last stage's copy of a tied embedding
)
_LEGACY = "language_model."
_NUMBERED = re.compile(rf"^{re.escape(LAYERS)}([0-9]{{1,6}})\.(.+)$")
# In order: what the layers were called, then what is in one.
_OLDER: dict[str, str] = {
    r"^(?:encoder|transformer)\.": "decoder.",
    r"\.attention\.": ".self_attention.",
    r"\.self_attention\.query_key_value\.": ".self_attention.linear_qkv.",
    r"\.self_attention\.dense\.": ".self_attention.linear_proj.",
    r"\.mlp\.dense_h_to_4h\.": ".mlp.linear_fc1.",
    r"\.mlp\.dense_4h_to_h\.": ".mlp.linear_fc2.",
    r"\.post_attention_layernorm\.": ".pre_mlp_layernorm.",
    # Transformer Engine's own layer, in NeMo before Megatron-core
    r"\.self_attention\.layernorm_qkv\.": ".self_attention.linear_qkv.",
    r"\.self_attention\.proj\.": ".self_attention.linear_proj.",
    r"\.layernorm_mlp\.(layer_norm_)": r".mlp.linear_fc1.\1",
    r"\.layernorm_mlp\.(fc[12])_": r".mlp.linear_\1.",
}


def canonical_name(key: str) -> str | None:
    """The one name of a key; None for what is no weight. Unknown names lose only their prefix.

    Raises SourceError for a key that would garble a message.
    """
    if not key.isprintable():
        raise SourceError(f"the checkpoint is damaged: it names a tensor {key[:80]!r}")
    name = _PREFIX.sub("", re.sub(r"(^|\.)_orig_mod(?=\.)", "", key).removeprefix("."))
    if _NO_WEIGHT.search(name):
        return None
    if name.startswith(_LEGACY):
        name = name.removeprefix(_LEGACY)
        for older, ours in _OLDER.items():
            name = re.sub(older, ours, name)
    for apart, fused in FUSED_NORMS.items():
        name = name.replace(fused, apart)
    return name


def layer_of(name: str) -> tuple[int, str] | None:
    """Number and name of a tensor in its layer; None for what is in none."""
    match = _NUMBERED.match(name)
    return (int(match[1]), match[2]) if match else None


def stacked_part(name: str) -> str | None:
    """The name in its layer of a tensor that holds all layers; None for any other."""
    if not name.startswith(LAYERS) or layer_of(name) is not None:
        return None
    return name.removeprefix(LAYERS)
