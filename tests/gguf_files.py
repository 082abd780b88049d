"""GGUF files as llama.cpp's converter writes them, made with the package `gguf` from tiny models.

Names, orders and keys are written out here once more, by hand: nothing of minitron.conversion.
"""

from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
KINDS = {"F32": torch.float32, "F16": torch.float16}


def stored_name(name: str) -> str:
    """A Hub tensor's name in a GGUF file."""
    module, _, end = name.rpartition(".")
    if not module.startswith("model.layers."):
        return f"{NAMES[module]}.{end}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.{end}"


def paired(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """q or k with rows of the two halves of a head in turn."""
    heads = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def stored_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors of a model as llama.cpp computes with them, in float32."""
    config, found = model.config, {}
    for name, tensor in model.state_dict().items():
        value = tensor.float()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        is_paired = config.model_type in ("llama", "mistral", "smollm3", "granite")
        if is_paired and ("q_proj" in name or "k_proj" in name):
            value = paired(value, config.head_dim)
        if config.model_type == "nemotron" and name.endswith("norm.weight"):
            value = value + 1
        found[stored_name(name)] = value
    return found


def metadata_of(model: PreTrainedModel) -> dict[str, Any]:
    """The keys of a model's config, without rotary scaling."""
    config = model.config
    arch = "llama" if config.model_type == "mistral" else config.model_type
    is_layer_norm = config.model_type == "nemotron"
    epsilon = config.norm_eps if is_layer_norm else config.rms_norm_eps
    rotary = config.rope_parameters
    own = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        f"attention.layer_norm_{'' if is_layer_norm else 'rms_'}epsilon": float(epsilon),
        "rope.freq_base": float(rotary["rope_theta"]),
        "rope.dimension_count": int(config.head_dim * rotary.get("partial_rotary_factor", 1)),
    }
    if config.model_type == "granite":
        own |= {
            "attention.scale": config.attention_multiplier,
            "embedding_scale": float(config.embedding_multiplier),
            "residual_scale": config.residual_multiplier,
            "logit_scale": config.logits_scaling,
        }
    return {
        "general.architecture": arch,
        "general.type": "model",
        **{f"{arch}.{key}": value for key, value in own.items()},
    }


def write_file(
    path: Path, metadata: dict[str, Any], tensors: dict[str, torch.Tensor], kind: str = "F32"
) -> Path:
    """Write a file whose matrices are of one of ggml's types; vectors are float32."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }[type(value)]
        add(key, value)
    for name, tensor in tensors.items():
        own = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
        data = gguf.quants.quantize(tensor.numpy(), own)
        writer.add_tensor(name, data, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def model_file(path: Path, model: PreTrainedModel, kind: str = "F32", **changed: Any) -> Path:
    """Write a model; `changed` are keys behind the architecture's name, with _ for a dot."""
    metadata = metadata_of(model)
    arch = metadata["general.architecture"]
    metadata |= {f"{arch}.{key.replace('__', '.')}": value for key, value in changed.items()}
    return write_file(path, metadata, stored_tensors(model), kind)


def byte_level_tokenizer(*, rows: int = 400) -> PreTrainedTokenizerFast:
    """A trained byte-level BPE that splits as SmolLM2's, with special and plain added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=rows - 3,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "It was the best of times, it was the worst of times 1775; naïve café. "
    tokenizer.train_from_iterator([text] * 20, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|start|>",
        eos_token="<|end|>",
        unk_token="<|end|>",
        pad_token="<|end|>",
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
        clean_up_tokenization_spaces=False,
    )
