"""Model folders as users have them: one model can be stored in many ways.

A `GivenFolder` has the model (family, sizes, flags) and the way in which it is stored. `write`
writes it with json, safetensors and torch; `config` and `model` make it with transformers 5.
`given_folders` draws random ones. Nothing here uses minitron.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies
from hypothesis.strategies import DrawFn, composite, integers, none, sampled_from
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# How a folder is stored does not depend on the family: these have all options of a config.
FAMILIES = ("nemotron", "llama", "mistral", "qwen2", "qwen3")
BIASES = {
    "nemotron": ("attention_bias", "mlp_bias"),
    "llama": ("attention_bias", "mlp_bias"),
    "qwen3": ("attention_bias",),
}
ROTARY: tuple[dict[str, Any], ...] = (
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
)
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class GivenFolder:
    """A model and how its folder stores it."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_key_value_heads: int
    heads_per_group: int
    head_dim: int
    vocab_size: int
    flags: tuple[str, ...]  # options that are true in the config
    window: int | None  # tokens that sliding-window layers attend to
    theta: float
    rotary: int  # index in ROTARY
    dtype: str
    seed: int
    # How it is stored.
    transformers: int  # whose config keys: 4 or 5
    has_nemo_keys: bool  # of the first Nemotron configs
    has_head_dim: bool
    has_kv_heads: bool
    writes_null: bool  # for an absent key
    pad: str  # none, inside, or vocab_size: a token was added and the embedding not resized
    has_prefix: bool
    tied_names: tuple[str, ...]  # which of embed and head are stored
    container: str
    shards: int
    lists_missing: bool  # the index lists the tied tensor, which no shard has
    has_generation_config: bool

    @property
    def heads(self) -> int:
        return self.num_key_value_heads * self.heads_per_group

    @property
    def is_tied(self) -> bool:
        return "tie_word_embeddings" in self.flags

    @property
    def fits_nemo(self) -> bool:
        """Whether a .nemo can store it: it has one flag for biases, and no rotary scaling."""
        biases = {flag in self.flags for flag in BIASES["nemotron"]}
        return self.rotary == 0 and len(biases) == 1

    @property
    def layer_types(self) -> list[str] | None:
        """The attention of each layer of a Qwen, whose last layers have a sliding window."""
        if self.model_type not in ("qwen2", "qwen3"):
            return None
        first = 1 if self.window else self.num_hidden_layers
        layers = range(self.num_hidden_layers)
        return ["sliding_attention" if i >= first else "full_attention" for i in layers]

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The config in transformers 5."""
        settings: dict[str, Any] = {
            **self._sizes(),
            **dict.fromkeys(self.flags, True),
            "tie_word_embeddings": self.is_tied,
            "rope_parameters": {"rope_theta": self.theta, **ROTARY[self.rotary]},
            "max_position_embeddings": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0 if self.pad == "inside" else None,
        }
        if self.model_type == "nemotron":
            settings["rope_parameters"]["partial_rotary_factor"] = 0.5
        if self.layer_types is not None:
            settings |= {
                "layer_types": self.layer_types,
                "use_sliding_window": self.window is not None,
                "max_window_layers": 1,
            }
        if self.model_type in ("mistral", "qwen2", "qwen3"):
            settings["sliding_window"] = self.window
        config: PreTrainedConfig = CONFIG_MAPPING[self.model_type](**settings)
        return config

    def _sizes(self) -> dict[str, int]:
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
        }

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model in transformers, with random weights, in the folder's dtype."""
        torch.manual_seed(self.seed)
        model = AutoModelForCausalLM.from_config(self.config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        model.tie_weights()
        return model.to(getattr(torch, self.dtype)).eval()

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor by its full name, a tied one under both names."""
        return {name: tensor.detach() for name, tensor in self.model.state_dict().items()}

    def config_json(self) -> dict[str, Any]:
        """The content of config.json."""
        rotary = {"rope_theta": self.theta, **ROTARY[self.rotary]}
        content: dict[str, Any] = {
            "architectures": [type(self.model).__name__],
            "model_type": self.model_type,
            **self._sizes(),
            **dict.fromkeys(self.flags, True),
            "max_position_embeddings": 64,
            "hidden_act": "relu2" if self.model_type == "nemotron" else "silu",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": self.is_tied,
            "torch_dtype" if self.transformers == 4 else "dtype": self.dtype,
        }
        pads = {"inside": 0, "vocab_size": self.vocab_size}
        if self.pad in pads:
            content["pad_token_id"] = pads[self.pad]
        absent = {"head_dim": not self.has_head_dim, "num_key_value_heads": not self.has_kv_heads}
        for key in [key for key, is_absent in absent.items() if is_absent]:
            content[key] = None
            if not self.writes_null:
                del content[key]
        if self.layer_types is not None:
            content |= {"use_sliding_window": self.window is not None, "max_window_layers": 1}
            if self.transformers == 5:
                content["layer_types"] = self.layer_types
        if self.model_type in ("mistral", "qwen2", "qwen3"):
            content["sliding_window"] = self.window
        partial = {"partial_rotary_factor": 0.5} if self.model_type == "nemotron" else {}
        if self.transformers == 5:
            return self._rename_keys({**content, "rope_parameters": {**rotary, **partial}})
        theta, kind = rotary.pop("rope_theta"), rotary.pop("rope_type")
        scaling = None if kind == "default" else {"type": kind, **rotary}
        if kind == "llama3":
            scaling = {"rope_type": kind, **rotary}
        return self._rename_keys(
            {**content, **partial, "rope_theta": theta, "rope_scaling": scaling}
        )

    def _rename_keys(self, content: dict[str, Any]) -> dict[str, Any]:
        old = {"head_dim": "kv_channels", "partial_rotary_factor": "rope_percent"}
        return {(old.get(key, key) if self.has_nemo_keys else key): content[key] for key in content}

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors in the files, by their names there."""
        names = {"embed": "model.embed_tokens.weight", "head": "lm_head.weight"}
        left = {name for key, name in names.items() if self.is_tied and key not in self.tied_names}
        return {
            name if self.has_prefix else name.removeprefix("model."): tensor
            for name, tensor in self.state.items()
            if name not in left
        }

    def write(self, folder: Path) -> Path:
        """Write the folder and return it."""
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.config_json()))
        if self.has_generation_config:
            content = {"bos_token_id": 1, "eos_token_id": [2, 3], "do_sample": True, "top_k": 7}
            (folder / "generation_config.json").write_text(json.dumps(content))
        tensors = self.stored_tensors()
        stem, ending = self.container.split(".")
        weight_map: dict[str, str] = {}
        for number in range(self.shards):
            of = f"-{number + 1:05d}-of-{self.shards:05d}" if self.shards > 1 else ""
            file = f"{stem}{of}.{ending}"
            part = dict(list(tensors.items())[number :: self.shards])
            if ending == "bin":
                torch.save(part, folder / file)
            else:
                copies = {name: tensor.clone() for name, tensor in part.items()}
                save_file(copies, folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        if self.shards > 1:
            if self.lists_missing and self.is_tied:
                weight_map.setdefault("lm_head.weight", file)
            total = sum(tensor.nbytes for tensor in tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / f"{self.container}.index.json").write_text(json.dumps(index))
        return folder


@composite
def given_folders(draw: DrawFn, families: tuple[str, ...] = FAMILIES) -> GivenFolder:
    """A random model, stored in a random way."""
    family = draw(sampled_from(families))
    kv_heads, per_group = draw(integers(1, 3)), draw(integers(1, 3))
    heads = kv_heads * per_group
    has_head_dim = family == "qwen3" or draw(strategies.booleans())
    # Nemotron rotates half of a head, in pairs; dynamic scaling divides by zero at one pair.
    head_dim = draw(sampled_from([8, 12] if family == "nemotron" else [4, 6, 8]))
    if not has_head_dim:
        hidden = heads * head_dim
    elif family == "llama":  # its config requires a multiple
        hidden = heads * draw(integers(2, 9))
    else:
        hidden = draw(integers(4, 40))
    biases = BIASES.get(family, ())
    each = sampled_from([(), biases, *((bias,) for bias in biases)])
    flags = (*draw(each), *draw(sampled_from([(), ("tie_word_embeddings",)])))
    is_tied = "tie_word_embeddings" in flags
    names = [("embed",), ("head",), ("embed", "head")] if is_tied else [()]
    return GivenFolder(
        model_type=family,
        hidden_size=hidden,
        intermediate_size=draw(integers(3, 40)),
        num_hidden_layers=draw(integers(1, 3)),
        num_key_value_heads=kv_heads,
        heads_per_group=per_group,
        head_dim=head_dim,
        vocab_size=draw(integers(7, 60)),
        flags=flags,
        window=None if family in ("nemotron", "llama") else draw(none() | integers(2, 6)),
        theta=draw(sampled_from([10000.0, 500000.0, 1000.0])),
        rotary=draw(sampled_from(range(len(ROTARY)))) if draw(strategies.booleans()) else 0,
        dtype=draw(sampled_from(DTYPES)),
        seed=draw(integers(0, 9)),
        transformers=draw(sampled_from([4, 5])),
        has_nemo_keys=family == "nemotron" and draw(strategies.booleans()),
        has_head_dim=has_head_dim,
        # The default is the number of heads in these two families, another number in others.
        has_kv_heads=per_group > 1
        or family not in ("nemotron", "llama")
        or draw(strategies.booleans()),
        # transformers does not open a qwen2 with null.
        writes_null=family != "qwen2" and draw(strategies.booleans()),
        pad=draw(sampled_from(["none", "none", "inside", "inside", "vocab_size"])),
        has_prefix=not is_tied or draw(strategies.booleans()),
        tied_names=draw(sampled_from(names)),
        container=draw(sampled_from(["model.safetensors", "pytorch_model.bin"])),
        shards=draw(integers(1, 3)),
        lists_missing=draw(strategies.booleans()),
        has_generation_config=draw(strategies.booleans()),
    )
