"""Megatron-core's names of a GPT's tensors: from every spelling, and to and from the Hub's.

A canonical name has no prefix and a layer number (`decoder.layers.3.mlp.linear_fc1.weight`), and
norms are separate from the matrices that Transformer Engine fuses them with. Megatron interleaves
q, k and v by KV group, joins a gated MLP's gate and up projection, pads the vocabulary, and may
store a norm's gain itself in place of the gain minus one. No weight is read: tensors are lazy.

    hub = hub_tensors(megatron, architecture)
    hub["model.layers.0.self_attn.k_proj.weight"].read(0, 10)
"""

import re
from collections.abc import Iterator, Mapping

from minitron.errors import SourceError, TargetError
from minitron.files.dtypes import name_of
from minitron.files.lazy_tensor import LazyTensor, Rows, Shifted, Stacked, Zeros
from minitron.model.architecture import Architecture, Slot
from minitron.model.family import STREAM_NORMS

EMBEDDING = "embedding.word_embeddings"
HEAD = "output_layer"
FINAL_NORM = "decoder.final_layernorm"
LAYERS = "decoder.layers."
# A distributed checkpoint always names a layer's norms as parts of the Transformer Engine modules
# that fuse them, even where the model was built without Transformer Engine.
FUSED_NORMS: Mapping[str, str] = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}

_QKV, _FC1 = "self_attention.linear_qkv", "mlp.linear_fc1"
# Part of a model to Megatron's module; .weight and .bias are the same on both sides.
_MODULES: Mapping[str, str] = {
    "embedding": EMBEDDING,
    "attention_norm": "input_layernorm",
    "q": _QKV,
    "k": _QKV,
    "v": _QKV,
    "o": "self_attention.linear_proj",
    "mlp_norm": "pre_mlp_layernorm",
    "gate": _FC1,
    "up": _FC1,
    "down": "mlp.linear_fc2",
    "final_norm": FINAL_NORM,
    "head": HEAD,
}
_PREFIX = re.compile(r"^(?:model\.|module\.)+")
_NO_WEIGHT = re.compile(
    r"^(?:optimizer|chained_[0-9]+)\."
    r"|_extra_state|inv_freq$"
    r"|^word_embeddings(?:_for_head)?\."  # the last stage's copy of a tied embedding
)
_LEGACY = "language_model."
_LAYERED = re.compile(rf"^{re.escape(LAYERS)}([0-9]{{1,6}})\.(.+)$")
# Applied in this order: the names of the stack of layers, then of the parts of a layer.
_OLDER_NAMES: Mapping[str, str] = {
    r"^(?:encoder|transformer)\.": "decoder.",
    r"\.attention\.": ".self_attention.",
    r"\.self_attention\.query_key_value\.": ".self_attention.linear_qkv.",
    r"\.self_attention\.dense\.": ".self_attention.linear_proj.",
    r"\.mlp\.dense_h_to_4h\.": ".mlp.linear_fc1.",
    r"\.mlp\.dense_4h_to_h\.": ".mlp.linear_fc2.",
    r"\.post_attention_layernorm\.": ".pre_mlp_layernorm.",
    # Transformer Engine's own layer, in NeMo before it used Megatron-core
    r"\.self_attention\.layernorm_qkv\.": ".self_attention.linear_qkv.",
    r"\.self_attention\.proj\.": ".self_attention.linear_proj.",
    r"\.layernorm_mlp\.(layer_norm_)": r".mlp.linear_fc1.\1",
    r"\.layernorm_mlp\.(fc[12])_": r".mlp.linear_\1.",
}


def canonical_name(key: str) -> str | None:
    """The canonical name of a key; None for what is not a weight. Unknown names lose their prefix.

    Raises SourceError for a key that cannot be printed.

    >>> canonical_name("model.language_model.encoder.layers.3.mlp.dense_h_to_4h.weight")
    'decoder.layers.3.mlp.linear_fc1.weight'
    """
    if not key.isprintable():
        raise SourceError(f"the checkpoint is damaged: it names a tensor {key[:80]!r}")
    name = _PREFIX.sub("", re.sub(r"(^|\.)_orig_mod(?=\.)", "", key).removeprefix("."))
    if _NO_WEIGHT.search(name):
        return None
    if name.startswith(_LEGACY):
        name = name.removeprefix(_LEGACY)
        for older, current in _OLDER_NAMES.items():
            name = re.sub(older, current, name)
    for separate, fused in FUSED_NORMS.items():
        name = name.replace(fused, separate)
    return name


def split_layer(name: str) -> tuple[int, str] | None:
    """The number of a tensor's layer and its name in there; None for a tensor of no layer."""
    match = _LAYERED.match(name)
    return (int(match[1]), match[2]) if match else None


def stacked_name(name: str) -> str | None:
    """The name inside a layer of a tensor that stacks all layers; None for any other."""
    if not name.startswith(LAYERS) or split_layer(name) is not None:
        return None
    return name.removeprefix(LAYERS)


def hub_tensors(
    megatron: Mapping[str, LazyTensor],
    architecture: Architecture,
    *,
    is_zero_centered: bool = True,
) -> dict[str, LazyTensor]:
    """The tensors of a Megatron GPT model as those of the Hub's model, in canonical order.

    Rows that pad the vocabulary are left out. `is_zero_centered` is true where norm weights are the
    gain minus one. Raises SourceError for a tensor that is missing, has another shape than by the
    config, or that the family does not have.
    """
    rows = architecture.vocab_size
    if f"{EMBEDDING}.weight" in megatron:
        rows = max(rows, megatron[f"{EMBEDDING}.weight"].shape[0])
    shapes = megatron_shapes(architecture, padded_vocab_size=rows)
    check_shapes(megatron, shapes)
    for name in megatron:
        if name not in shapes:
            raise SourceError(
                f"config and tensors disagree: no {architecture.family.name} of this config has "
                f"{name}; give the config that was saved with the tensors"
            )
    return {
        slot.name: _hub_tensor(
            slot, megatron[megatron_name(slot)], architecture, is_zero_centered=is_zero_centered
        )
        for slot in architecture.slots()
    }


def megatron_tensors(
    hub: Mapping[str, LazyTensor], architecture: Architecture, *, padded_vocab_size: int
) -> dict[str, LazyTensor]:
    """The tensors of the Hub's Nemotron as those of a Megatron GPT model with zero-centred norms.

    The vocabulary is padded with zeros. Raises TargetError for another family, or q, k and v of
    different dtypes; SourceError for a tensor that is missing or of another shape.
    """
    if "nemo" not in architecture.family.formats:
        raise TargetError(
            f"a {architecture.model_type} cannot be written as a Megatron checkpoint: only "
            "nemotron can"
        )
    check_shapes(hub, architecture.shapes())
    tensors: dict[str, LazyTensor] = {}
    for slot in architecture.slots():
        name = megatron_name(slot)
        if name not in tensors:
            tensors[name] = _megatron_tensor(slot, hub, architecture, padded_vocab_size)
    return tensors


def megatron_name(slot: Slot) -> str:
    """The Megatron tensor that holds a tensor of the Hub's model."""
    layer = "" if slot.layer is None else f"{LAYERS}{slot.layer}."
    return f"{layer}{_MODULES[_part(slot)]}.{slot.row.kind}"


def megatron_shapes(
    architecture: Architecture, *, padded_vocab_size: int
) -> dict[str, tuple[int, ...]]:
    """Megatron tensor name to shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for slot in architecture.slots():
        name = megatron_name(slot)
        rows = padded_vocab_size if slot.row.has_vocabulary else slot.shape[0]
        fused = shapes[name][0] if name in shapes else 0
        shapes[name] = (fused + rows, *slot.shape[1:])
    return shapes


def check_shapes(tensors: Mapping[str, LazyTensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if name not in tensors:
            raise SourceError(f"config and tensors disagree: the config asks for {name}, not there")
        if tuple(tensors[name].shape) != shape:
            raise SourceError(
                f"config and tensors disagree: {name} has shape {list(tensors[name].shape)}, the "
                f"config asks for {list(shape)}"
            )


def _hub_tensor(
    slot: Slot, stored: LazyTensor, architecture: Architecture, *, is_zero_centered: bool
) -> LazyTensor:
    if _is_qkv(slot):
        return Rows(stored, list(_qkv_runs(slot, architecture)))
    if (half := _gated_half(slot, architecture)) is not None:
        return Rows(stored, [(half * slot.shape[0], (half + 1) * slot.shape[0])])
    if slot.row.has_vocabulary and stored.shape[0] > slot.shape[0]:
        return Rows(stored, [(0, slot.shape[0])])
    to_zero_centered = architecture.family.norm.is_zero_centered
    is_gain = _part(slot) in STREAM_NORMS and slot.row.kind == "weight"
    if is_gain and is_zero_centered != to_zero_centered:
        return Shifted(stored, -1.0 if to_zero_centered else 1.0)
    return stored


def _megatron_tensor(
    slot: Slot, hub: Mapping[str, LazyTensor], architecture: Architecture, padded_vocab_size: int
) -> LazyTensor:
    stored = hub[slot.name]
    if _is_qkv(slot):
        return _fuse_qkv(slot, hub, architecture)
    padding = padded_vocab_size - slot.shape[0]
    if slot.row.has_vocabulary and padding:
        return Stacked([stored, Zeros(stored.dtype, (padding, *slot.shape[1:]))])
    return stored


def _fuse_qkv(slot: Slot, hub: Mapping[str, LazyTensor], architecture: Architecture) -> LazyTensor:
    """The rows of q, k and v, interleaved by KV group: all of group 0, all of group 1, ..."""
    family, kind = architecture.family, slot.row.kind
    names = [family.tensor(part, kind, slot.layer) for part in "qkv"]
    dtypes = {hub[name].dtype for name in names}
    if len(dtypes) > 1:
        seen = ", ".join(sorted(name_of(dtype) for dtype in dtypes))
        raise TargetError(f"{', '.join(names)} have dtypes {seen}: choose one")
    groups = architecture.num_key_value_heads
    return Stacked(
        [
            Rows(hub[name], [(group * rows, (group + 1) * rows)])
            for group in range(groups)
            for name in names
            for rows in (hub[name].shape[0] // groups,)
        ]
    )


def _qkv_runs(slot: Slot, architecture: Architecture) -> Iterator[tuple[int, int]]:
    """The rows of q, k or v in Megatron's fused tensor: a run for each KV group."""
    heads_per_group = architecture.num_attention_heads // architecture.num_key_value_heads
    first, count = {
        "q": (0, heads_per_group),
        "k": (heads_per_group, 1),
        "v": (heads_per_group + 1, 1),
    }[_part(slot)]
    for group in range(architecture.num_key_value_heads):
        start = (group * (heads_per_group + 2) + first) * architecture.head_dim
        yield start, start + count * architecture.head_dim


def _gated_half(slot: Slot, architecture: Architecture) -> int | None:
    """Which half of fc1 the tensor is: 0 the gate, 1 the up projection; None where it is none."""
    if f".{_FC1}." not in megatron_name(slot) or not architecture.family.is_gated:
        return None
    return 0 if _part(slot) == "gate" else 1


def _is_qkv(slot: Slot) -> bool:
    return f".{_QKV}." in megatron_name(slot)


def _part(slot: Slot) -> str:
    """The one part of a Hub tensor: families that Megatron can hold fuse none on the Hub."""
    [part] = slot.row.parts
    return part
