"""Builders of tiny models and texts. All sizes differ, and head_dim is not hidden / heads.

All weights are random, norms and biases too, so that a tensor that is dropped, swapped or cut
wrongly changes the logits.
"""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from minitron.model.importance import Importance
from minitron.scores.activation_scores import Measurement, importance_of, made_by, sums_over
from minitron.scores.sweep import sweep
from minitron.sources.layer_stream import LayerStream
from minitron.sources.opening import zoo
from minitron.text.corpus import Corpus

SIZES = {
    "hidden_size": 42,
    "intermediate_size": 66,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 101,
}
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.3,
    "logits_scaling": 2.5,
}
GEMMA3 = {"sliding_window": 5, "query_pre_attn_scalar": 7, "sliding_window_pattern": 2}
# Every family, with each option that changes its tensors.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "nemotron": ("nemotron", {}),
    "nemotron-biased": ("nemotron", {"attention_bias": True, "mlp_bias": True}),
    "nemotron-tied": ("nemotron", {"tie_word_embeddings": True}),
    "llama": ("llama", {}),
    "llama-biased-tied": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2-sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3-biased-tied": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "smollm3": (
        "smollm3",
        {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 5},
    ),
    "seed_oss": ("seed_oss", {"residual_dropout": 0.0}),
    "seed_oss-biased": ("seed_oss", {"attention_out_bias": True, "mlp_bias": True}),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", GRANITE),
    "granite-biased-tied": (
        "granite",
        {**GRANITE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "gemma2": ("gemma2", {"sliding_window": 5, "query_pre_attn_scalar": 7}),
    "gemma3_text": ("gemma3_text", GEMMA3),
    "gemma3_text-untied": (
        "gemma3_text",
        {**GEMMA3, "tie_word_embeddings": False, "final_logit_softcapping": 3.0},
    ),
    "phi3": ("phi3", {"sliding_window": 5}),
}
FAMILIES = tuple(dict.fromkeys(family for family, _ in VARIANTS.values()))


def tiny_config(variant: str = "nemotron", **changed: Any) -> PreTrainedConfig:
    """The config of a family in transformers, at the tiny sizes."""
    model_type, options = VARIANTS[variant]
    settings = {"max_position_embeddings": 64, **SIZES, **options, **changed}
    config: PreTrainedConfig = CONFIG_MAPPING[model_type](
        bos_token_id=2, eos_token_id=3, pad_token_id=0, **settings
    )
    return config


def tiny_model(
    variant: str = "nemotron", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changed: Any
) -> PreTrainedModel:
    """A model of transformers, with random weights."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(variant, **changed), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.tie_weights()
    return model.to(dtype).eval()


def activation_scores(
    model: PreTrainedModel,
    corpus: Corpus,
    measurement: Measurement | None = None,
    *,
    batch_tokens: int = 8192,
) -> Importance:
    """The scores of a loaded model on a corpus, in one pass, without a memory budget."""
    measurement, stream = measurement or Measurement(), LayerStream.of_model(model)
    sums = sweep(
        list(corpus.sequences),
        lambda chunk: sums_over(stream, chunk, measurement),
        batch_tokens=batch_tokens,
        chunk_tokens=16 * batch_tokens,
    )
    return importance_of(sums, measurement, stream.config, made_by(corpus, stream.dtype))


def tiny_folder(path: Path, variant: str = "nemotron", **options: Any) -> Path:
    """Write a Hub folder with transformers, without a tokenizer."""
    shards = options.pop("max_shard_size", "5GB")
    tiny_model(variant, **options).save_pretrained(path, max_shard_size=shards)
    return path


def pickled_folder(
    path: Path, variant: str = "nemotron", *, shards: int = 1, **options: Any
) -> Path:
    """Write a Hub folder with pytorch_model.bin, or with that many shards of it."""
    model = tiny_model(variant, **options)
    model.config.save_pretrained(path)
    state = model.state_dict()
    if shards == 1:
        torch.save(state, path / "pytorch_model.bin")
        return path
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = dict(list(state.items())[number::shards])
        torch.save(part, path / file)
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return path


def edit_config(folder: Path, remove: tuple[str, ...] = (), **changed: Any) -> None:
    """Change and remove keys of a folder's config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    kept = {key: value for key, value in config.items() if key not in remove}
    path.write_text(json.dumps({**kept, **changed}))


def zoo_tokenizer() -> PreTrainedTokenizerFast:
    """The embedded teacher's tokenizer."""
    return PreTrainedTokenizerFast.from_pretrained(zoo()["tiny"])


def write_text(path: Path, documents: list[str]) -> Path:
    """Write documents as .txt (joined), .jsonl or .jsonl.gz, by the suffix of the path."""
    if path.name.endswith(".txt"):
        path.write_text("\n".join(documents))
        return path
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return path


def weights_of(folder: Path) -> Mapping[str, torch.Tensor]:
    """Every tensor of a folder's safetensors files, read with the safetensors library."""
    from safetensors.torch import load_file

    merged: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        merged.update(load_file(path))
    return merged
