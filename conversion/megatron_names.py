"""The one table between the Hub's tensors and Megatron-core's, in both directions.

Megatron fuses q, k and v of one KV group behind each other, group after group, a gated MLP's gate
and its up projection behind each other, pads the vocabulary,
and may store a norm's gain as it is instead of as the gain minus one. Names here carry no prefix
and a layer number (`decoder.layers.3.mlp.linear_fc1.weight`); how an archive spells them is its
reader's and writer's to know. No weight is read: every tensor is made of the others lazily.

    hub = hub_tensors(megatron, architecture)
    hub["model.layers.0.self_attn.k_proj.weight"].read(0, 10)
"""

from collections.abc import Iterator, Mapping

from minitron.errors import SourceError, TargetError
from minitron.files.lazy_tensor import LazyTensor, Rows, Shifted, Stacked, Zeros
from minitron.model.architecture import Architecture, Slot

EMBEDDING = "embedding.word_embeddings"
HEAD = "output_layer"
FINAL_NORM = "decoder.final_layernorm"
LAYERS = "decoder.layers."
# In a distributed checkpoint a layer's norms bear the names of the Transformer Engine modules that
# they are fused into, whatever the model was built with.
FUSED_NORMS: Mapping[str, str] = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}

_QKV, _FC1 = "self_attention.linear_qkv", "mlp.linear_fc1"
# Module of the Hub's model to module of Megatron's; both spell .weight and .bias alike.
_MODULES: Mapping[str, str] = {
    "model.embed_tokens": EMBEDDING,
    "input_layernorm": "input_layernorm",
    "self_attn.q_proj": _QKV,
    "self_attn.k_proj": _QKV,
    "self_attn.v_proj": _QKV,
    "self_attn.o_proj": "self_attention.linear_proj",
    "post_attention_layernorm": "pre_mlp_layernorm",
    "mlp.gate_proj": _FC1,
    "mlp.up_proj": _FC1,
    "mlp.down_proj": "mlp.linear_fc2",
    "model.norm": FINAL_NORM,
    "lm_head": HEAD,
}


def hub_tensors(
    megatron: Mapping[str, LazyTensor],
    architecture: Architecture,
    *,
    is_zero_centered: bool = True,
) -> dict[str, LazyTensor]:
    """The tensors of a Megatron GPT model as those of the Hub's model, in canonical order.

    Rows that pad the vocabulary are left out. `is_zero_centered` says whether the norms hold their
    gain minus one, as the Hub's Nemotron's do. Raises SourceError for a tensor that is missing, of
    another shape than the config says, or that the family does not have.
    """
    rows = architecture.vocab_size
    if f"{EMBEDDING}.weight" in megatron:
        rows = max(rows, megatron[f"{EMBEDDING}.weight"].shape[0])
    shapes = megatron_shapes(architecture, padded_vocab_size=rows)
    _check_agreement(megatron, shapes)
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
    if architecture.model_type != "nemotron":
        raise TargetError(
            f"a {architecture.model_type} cannot be written as a Megatron checkpoint: only "
            "nemotron can"
        )
    _check_agreement(hub, architecture.shapes())
    tensors: dict[str, LazyTensor] = {}
    for slot in architecture.slots():
        name = megatron_name(slot)
        if name not in tensors:
            tensors[name] = _megatron_tensor(slot, hub, architecture, padded_vocab_size)
    return tensors


def megatron_name(slot: Slot) -> str:
    """The Megatron tensor that holds a tensor of the Hub's Nemotron."""
    layer = "" if slot.layer is None else f"model.layers.{slot.layer}."
    module, _, kind = slot.name.removeprefix(layer).rpartition(".")
    place = "" if slot.layer is None else f"{LAYERS}{slot.layer}."
    return f"{place}{_MODULES[module]}.{kind}"


def megatron_shapes(
    architecture: Architecture, *, padded_vocab_size: int
) -> dict[str, tuple[int, ...]]:
    """Megatron tensor name to shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for slot in architecture.slots():
        name = megatron_name(slot)
        rows = padded_vocab_size if slot.row.axes[0] == ("vocab",) else slot.shape[0]
        fused = shapes[name][0] if name in shapes else 0
        shapes[name] = (fused + rows, *slot.shape[1:])
    return shapes


def _check_agreement(
    tensors: Mapping[str, LazyTensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
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
    if _is_fused(slot):
        return Rows(stored, list(_fused_runs(slot, architecture)))
    if (half := _gated_half(slot, architecture)) is not None:
        return Rows(stored, [(half * slot.shape[0], (half + 1) * slot.shape[0])])
    if slot.row.axes[0] == ("vocab",) and stored.shape[0] > slot.shape[0]:
        return Rows(stored, [(0, slot.shape[0])])
    ours = architecture.family.norms_are_zero_centered
    if slot.row.template.endswith("norm.weight") and is_zero_centered != ours:
        return Shifted(stored, -1.0 if ours else 1.0)
    return stored


def _megatron_tensor(
    slot: Slot, hub: Mapping[str, LazyTensor], architecture: Architecture, padded_vocab_size: int
) -> LazyTensor:
    stored = hub[slot.name]
    if _is_fused(slot):
        return _fused(slot, hub, architecture)
    padding = padded_vocab_size - slot.shape[0]
    if slot.row.axes[0] == ("vocab",) and padding:
        return Stacked([stored, Zeros(stored.dtype, (padding, *slot.shape[1:]))])
    return stored


def _fused(slot: Slot, hub: Mapping[str, LazyTensor], architecture: Architecture) -> LazyTensor:
    """q, k and v behind each other, group after group."""
    names = [slot.name.replace("q_proj", f"{part}_proj") for part in "qkv"]
    dtypes = {hub[name].dtype for name in names}
    if len(dtypes) > 1:
        seen = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise TargetError(f"{names[0]} and its k_proj, v_proj have dtypes {seen}: choose one")
    groups = architecture.num_key_value_heads
    return Stacked(
        [
            Rows(hub[name], [(group * rows, (group + 1) * rows)])
            for group in range(groups)
            for name in names
            for rows in (hub[name].shape[0] // groups,)
        ]
    )


def _fused_runs(slot: Slot, architecture: Architecture) -> Iterator[tuple[int, int]]:
    """Where q, k or v lies in the fused rows: a run a group."""
    heads_per_group = architecture.num_attention_heads // architecture.num_key_value_heads
    first, count = {
        "q": (0, heads_per_group),
        "k": (heads_per_group, 1),
        "v": (heads_per_group + 1, 1),
    }[_fused_part(slot)]
    for group in range(architecture.num_key_value_heads):
        start = (group * (heads_per_group + 2) + first) * architecture.head_dim
        yield start, start + count * architecture.head_dim


def _gated_half(slot: Slot, architecture: Architecture) -> int | None:
    """Which half of fc1 the tensor is: 0 the gate, 1 the up projection; None where it is none."""
    if f".{_FC1}." not in megatron_name(slot) or not architecture.family.is_gated:
        return None
    return 0 if ".gate_proj." in slot.name else 1


def _is_fused(slot: Slot) -> bool:
    return f".{_QKV}." in megatron_name(slot)


def _fused_part(slot: Slot) -> str:
    """q, k or v."""
    return slot.name.split(".")[-2].removesuffix("_proj")
