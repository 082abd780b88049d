"""Nemotron for transformers: interchangeable with the class in transformers.

Unusual in this decoder:

- LayerNorm1P: the stored weight is the gain minus one, and there is a bias;
- the MLP has no gate: up projection, squared ReLU, down projection;
- only the first dimensions of each head are rotated (`partial_rotary_factor`);
- `head_dim` is independent: heads * head_dim can differ from hidden_size.

Class names, state-dict keys and `model_type` are those of transformers, so a checkpoint saved by
one class loads in the other. This file knows tensors only: no tokenizers, files or pruning. It
imports only torch, transformers and its configuration, so that a Hub repository can hold it.

    model = NemotronForCausalLM.from_pretrained("nvidia/Minitron-8B-Base", dtype="bfloat16")
"""

# transformers is typed only in parts.
# mypy: allow-untyped-calls, allow-untyped-decorators

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.input_outputs import PagedAttentionArgs
from transformers.generation.utils import GenerationMixin
from transformers.integrations.hub_kernels import use_kernel_forward_from_hub, use_kernelized_func
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import (
    TransformersKwargs,
    can_return_tuple,
    merge_with_config_defaults,
)
from transformers.utils.output_capturing import capture_outputs

from .configuration_nemotron import NemotronConfig

# transformers 5.24 renamed `past_key_values` to `cache`, in calls and in outputs. Every forward
# here accepts both names; functions and outputs of transformers get the name of the installed
# version.
CACHE_NAME = (
    "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
)
# Keywords that a forward accepts besides its named parameters.
KEYWORDS = frozenset(
    {
        *TransformersKwargs.__annotations__,
        *PagedAttentionArgs.__annotations__,  # of continuous batching
        *("ignore_index", "shift_labels"),  # of the loss
        *("debug_io", "debug_io_dir", "prune_layers"),  # of transformers' debugger
        "token_type_ids",  # from some tokenizers; ignored, as a Nemotron has one token type
    }
)


def one_cache(past_key_values: Cache | None, cache: Cache | None) -> Cache | None:
    """The cache, given under either name; two different caches raise ValueError."""
    if past_key_values is None or past_key_values is cache:
        return cache
    if cache is not None:
        raise ValueError("cache and past_key_values are two different caches: give one of them.")
    return past_key_values


def cache_keyword(cache: Cache | None) -> dict[str, Any]:
    """The cache as a keyword argument for functions and outputs of transformers."""
    return {CACHE_NAME: cache}


def with_both_names(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward of transformers that accepts the cache under either name."""

    @wraps(forward)
    def forward_with_cache(
        *args: Any, past_key_values: Cache | None = None, cache: Cache | None = None, **kwargs: Any
    ) -> Any:
        cache = one_cache(past_key_values, cache)
        return forward(*args, **kwargs, **({} if cache is None else cache_keyword(cache)))

    return forward_with_cache


def is_filled_by_layers(cache: Any) -> bool:
    """Whether the attention layers, and not a kernel, add keys and values to the cache.

    Before transformers 5.24, kernels fill the paged cache of continuous batching. They get it as
    the keyword `cache`.
    """
    is_filled_by_kernels = CACHE_NAME != "cache" and isinstance(cache, PagedAttentionCache)
    return cache is not None and not is_filled_by_kernels


def check_keywords(kwargs: Mapping[str, Any], attend: Callable[..., Any]) -> None:
    """Raise TypeError for a keyword that neither the attention function `attend` nor a loss reads.

    With an attention function from outside transformers every keyword is accepted, because its
    keywords are not known.
    """
    unknown = [name for name in kwargs if name not in KEYWORDS and kwargs[name] is not None]
    if not unknown or not attend.__module__.startswith(("transformers.", __name__)):
        return
    known = inspect.signature(attend).parameters
    unknown = [name for name in unknown if name not in known]
    if unknown:
        raise TypeError(
            f"a Nemotron takes no keyword {', '.join(unknown)}: leave it out, or correct its name."
        )


@use_kernel_forward_from_hub("LayerNorm1P")
class NemotronLayerNorm1P(nn.LayerNorm):
    """LayerNorm that stores its gain minus one: a weight of 0 is a gain of 1."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        gain: Tensor = self.weight
        bias: Tensor = self.bias
        device, dtype = input.device.type, input.dtype
        # In bfloat16, 1 + weight would round a small weight away: near 1 the step is 1/128.
        if gain.dtype in (torch.bfloat16, torch.float16):
            gain, bias = gain.float(), bias.float()
        if device != "cpu":  # only the CPU kernel accepts an input of lower precision
            input = input.to(gain.dtype)
        output = F.layer_norm(input, self.normalized_shape, gain + 1, bias, self.eps)
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return output if output.dtype == dtype else output.to(dtype)


class NemotronRotaryEmbedding(nn.Module):
    """Cosines and sines of the positions, computed once for all layers."""

    inv_freq: Tensor  # (rotary size / 2,)
    original_inv_freq: Tensor

    def __init__(self, config: NemotronConfig) -> None:
        super().__init__()
        assert config.rope_parameters is not None
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        frequencies = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = frequencies(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(
        config: NemotronConfig, device: torch.device | None = None, **kwargs: Any
    ) -> tuple[Tensor, float]:
        """Unscaled frequencies and the factor 1 on cos and sin, as ROPE_INIT_FUNCTIONS return."""
        rope, head_dim = config.rope_parameters, config.head_dim
        assert rope is not None
        assert head_dim is not None
        rotary_size = int(head_dim * rope["partial_rotary_factor"])
        exponents = torch.arange(0, rotary_size, 2, dtype=torch.float, device=device) / rotary_size
        return 1.0 / rope["rope_theta"] ** exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].float() * self.inv_freq.to(x.device, torch.float)
        angles = torch.cat((angles, angles), dim=-1)  # (batch, length, rotary size)
        cos, sin = angles.cos(), angles.sin()
        if self.attention_scaling != 1:
            cos, sin = cos * self.attention_scaling, sin * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


@use_kernel_forward_from_hub("rotary_pos_emb")
def apply_rotary_pos_emb(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Rotate all dimensions of q and k; the caller splits off those that are not rotated."""
    heads = torch.cat((q, k), dim=unsqueeze_dim)  # one operation for both
    first, second = heads.chunk(2, dim=-1)
    quarter_turn = torch.cat((-second, first), dim=-1)
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    heads = torch.addcmul(heads * cos, quarter_turn, sin)
    counts = (q.shape[unsqueeze_dim], k.shape[unsqueeze_dim])
    rotated_q, rotated_k = heads.split_with_sizes(counts, dim=unsqueeze_dim)
    return rotated_q, rotated_k


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,  # (batch, heads, length, head_dim)
    key: Tensor,  # (batch, kv heads, key length, head_dim)
    value: Tensor,
    attention_mask: Tensor | None,  # added to the scores
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention as matrix products; query heads of a group read their key and value uncopied."""
    batch, heads, length, head_dim = query.shape
    kv_heads, key_length = key.shape[1], key.shape[2]
    grouped = query.reshape(batch, kv_heads, -1, head_dim)  # (batch, kv heads, group * length, -1)
    scores = (grouped @ key.transpose(2, 3) * scaling).view(batch, heads, length, key_length)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    output = (weights.view(batch, kv_heads, -1, key_length) @ value).view(
        batch, heads, length, head_dim
    )
    return output.transpose(1, 2).contiguous(), weights


def attention_function(config: NemotronConfig) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function that the config names."""
    function: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
        config._attn_implementation, eager_attention_forward
    )
    return function


@use_kernelized_func(apply_rotary_pos_emb)
class NemotronAttention(nn.Module):
    """Grouped-query attention; only the first dimensions of each head are rotated."""

    def __init__(self, config: NemotronConfig, layer_idx: int) -> None:
        super().__init__()
        heads, kv_heads, head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        assert kv_heads is not None
        assert head_dim is not None
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = head_dim
        self.num_key_value_groups = heads // kv_heads
        self.scaling = head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        hidden_size, has_bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(hidden_size, heads * head_dim, bias=has_bias)
        self.k_proj = nn.Linear(hidden_size, kv_heads * head_dim, bias=has_bias)
        self.v_proj = nn.Linear(hidden_size, kv_heads * head_dim, bias=has_bias)
        self.o_proj = nn.Linear(heads * head_dim, hidden_size, bias=has_bias)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        batch_and_length = hidden_states.shape[:-1]
        per_head = (*batch_and_length, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(per_head).transpose(1, 2)
        key = self.k_proj(hidden_states).view(per_head).transpose(1, 2)
        value = self.v_proj(hidden_states).view(per_head).transpose(1, 2)

        cos, sin = position_embeddings
        parts = (cos.shape[-1], self.head_dim - cos.shape[-1])  # rotated, not rotated
        q, fixed_q = query.split_with_sizes(parts, dim=-1)
        k, fixed_k = key.split_with_sizes(parts, dim=-1)
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        query, key = torch.cat((q, fixed_q), dim=-1), torch.cat((k, fixed_k), dim=-1)
        cache = one_cache(past_key_values, cache)
        if is_filled_by_layers(cache):
            assert cache is not None
            key, value = cache.update(key, value, self.layer_idx, kwargs=kwargs)
        elif cache is not None:
            kwargs["cache"] = cache

        output, weights = attention_function(self.config)(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,  # arguments of the kernel for continuous batching and packed sequences
        )
        return self.o_proj(output.reshape(*batch_and_length, -1)), weights


class NemotronMLP(nn.Module):
    """Up projection, activation (published models: squared ReLU), down projection; no gate."""

    def __init__(self, config: NemotronConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down_proj(self.act_fn(self.up_proj(x)))
        return output


class NemotronDecoderLayer(GradientCheckpointingLayer):
    """Attention, then the MLP; each reads the normalized hidden states and adds to them."""

    def __init__(self, config: NemotronConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = NemotronAttention(config, layer_idx)
        self.mlp = NemotronMLP(config)
        self.input_layernorm = NemotronLayerNorm1P(config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = NemotronLayerNorm1P(config.hidden_size, eps=config.norm_eps)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        transformed: Tensor = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + transformed


class NemotronPreTrainedModel(PreTrainedModel):
    """The base class of the Nemotron models: what they support, and how weights are initialized."""

    config: NemotronConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NemotronDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": NemotronDecoderLayer, "attentions": NemotronAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(
            module, NemotronLayerNorm1P
        ):  # super() sets the weight of every LayerNorm to 1
            init.zeros_(module.weight)


class NemotronModel(NemotronPreTrainedModel):
    """The decoder without an output layer: token ids or embeddings to normalized hidden states."""

    def __init__(self, config: NemotronConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            NemotronDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)
        )
        self.norm = NemotronLayerNorm1P(config.hidden_size, eps=config.norm_eps)
        self.rotary_emb = NemotronRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder. A row of `position_ids` that restarts at 0 holds packed sequences.

        `cache` and `past_key_values` are one argument. A keyword that is neither in `KEYWORDS` nor
        read by the attention function raises TypeError.
        """
        check_keywords(kwargs, attention_function(self.config))
        cache = one_cache(past_key_values, cache)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)

        # The mask is made before the cache and the positions below: transformers detects packed
        # sequences only without a cache, and only from positions that the caller gave.
        is_ours = is_filled_by_layers(cache)
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **cache_keyword(cache if is_ours else None),
        )
        if use_cache and cache is None:
            cache, is_ours = DynamicCache(config=self.config), True
        if position_ids is None:
            seen = cache.get_seq_length() if cache is not None else 0
            new = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
            position_ids = (new + seen).unsqueeze(0)  # (1, length)

        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                position_ids=position_ids,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **{CACHE_NAME if is_ours else "cache": cache},
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), **cache_keyword(cache if is_ours else None)
        )


def keep_positions(hidden_states: Tensor, kept: int | Tensor) -> Tensor:
    """The last `kept` positions (0: all), or those of a tensor of indices or of a boolean mask."""
    if isinstance(kept, int):
        return hidden_states[:, -kept:]
    if kept.dim() == 1:  # the same positions of every row
        return hidden_states[:, kept]
    if kept.dtype == torch.bool:  # (batch, length) -> (kept, hidden_size)
        return hidden_states[kept]
    return hidden_states.take_along_dim(kept[..., None], dim=1)  # (batch, kept, hidden_size)


class NemotronForCausalLM(NemotronPreTrainedModel, GenerationMixin):
    """Nemotron with a language-model head: logits of the next token, generation, and the loss."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # type: ignore[dict-item]
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: NemotronConfig) -> None:
        super().__init__(config)
        self.model = NemotronModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of all positions, or of `logits_to_keep` (a count, indices or a mask).

        `labels` are aligned with the tokens: the loss shifts them.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=cache,
            **kwargs,
        )
        assert outputs.last_hidden_state is not None
        logits = self.lm_head(keep_positions(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **cache_keyword(getattr(outputs, CACHE_NAME)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# transformers' generic heads have the forward. Their __init__ is not called: it would make the
# backbone with AutoModel, which uses transformers' class until `register()`.


class NemotronForSequenceClassification(GenericForSequenceClassification, NemotronPreTrainedModel):
    """Nemotron that labels a text, from the last token that is not padding."""

    forward = with_both_names(GenericForSequenceClassification.forward)

    def __init__(self, config: NemotronConfig) -> None:
        NemotronPreTrainedModel.__init__(self, config)
        assert config.num_labels is not None
        self.num_labels = config.num_labels
        self.model = NemotronModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class NemotronForTokenClassification(GenericForTokenClassification, NemotronPreTrainedModel):
    """Nemotron that labels each token."""

    forward = with_both_names(GenericForTokenClassification.forward)

    def __init__(self, config: NemotronConfig) -> None:
        NemotronPreTrainedModel.__init__(self, config)
        assert config.num_labels is not None
        self.num_labels = config.num_labels
        self.model = NemotronModel(config)
        rates = (getattr(config, name, None) for name in ("classifier_dropout", "hidden_dropout"))
        self.dropout = nn.Dropout(next((rate for rate in rates if rate is not None), 0.1))
        has_bias = getattr(config, "token_classification_bias", True)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=has_bias)
        self.post_init()


class NemotronForQuestionAnswering(GenericForQuestionAnswering, NemotronPreTrainedModel):
    """Nemotron that finds the start and end of an answer; its backbone is named `transformer`."""

    base_model_prefix = "transformer"
    forward = with_both_names(GenericForQuestionAnswering.forward)

    def __init__(self, config: NemotronConfig) -> None:
        NemotronPreTrainedModel.__init__(self, config)
        self.transformer = NemotronModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, *args: Any, key_mapping: dict[str, str] | None = None, **kwargs: Any
    ) -> Any:
        """Load a checkpoint, also one of another head, which names the backbone `model`."""
        renaming = {r"^model\.": "transformer."}
        key_mapping = renaming | (key_mapping or {})
        loaded: Any = super().from_pretrained(*args, key_mapping=key_mapping, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # When saving, transformers would rename back to `model`, which its own class does not read.
        model._weight_conversions = [
            conversion
            for conversion in model._weight_conversions
            if conversion.target_patterns != list(renaming.values())
        ]
        return loaded


__all__ = [
    "NemotronForCausalLM",
    "NemotronForQuestionAnswering",
    "NemotronForSequenceClassification",
    "NemotronForTokenClassification",
    "NemotronModel",
    "NemotronPreTrainedModel",
]
