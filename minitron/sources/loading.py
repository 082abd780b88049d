"""Loading: the config object, model, tokenizer and generation settings of a source.

They are transformers' own objects. Knows how a model is built without running code of its
repository, and which dtype a device computes in. Does not know what is done with the model.

    model = load_model(open_source("tiny"))
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import ACT2FN
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from minitron.errors import (
    ArchitectureError,
    SourceError,
    TargetError,
    TokenizerError,
    foreign_parser,
)
from minitron.files.checked_json import check_kind, read_object
from minitron.files.dtypes import check_finite
from minitron.model.architecture import Architecture
from minitron.model.config_json import check_rotary, has_row, with_usable_pad
from minitron.model.family import EMBEDDING, HEAD
from minitron.model.rotary import lengthened_context
from minitron.model.source import Source
from minitron.sources.empty_weights import empty_weights
from minitron.text.tokenizer_ids import open_tokenizer
from modeling_nemotron import NemotronConfig, NemotronForCausalLM

MAX_SEQ_LEN = 4096  # the context of the Nemotron-4 family
GENERATION = "generation_config.json"
_GENERATION_REMEDY = "mend or remove it"
_GENERATION_KINDS = {
    "bos_token_id?": (int, None),
    "eos_token_id?": (int, [int], None),
    "pad_token_id?": (int, None),
}
_KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
logger = logging.getLogger(__name__)

# What transformers raises for a config that it refuses.
_REFUSALS = (AttributeError, KeyError, StrictDataclassError, TypeError, ValueError)


def hub_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """The family's own config object: ours for Nemotron, transformers' for the others.

    Settings of the attention kernel are ignored: they could name one on the Hub, which is code.
    Raises ArchitectureError for what no family has, and in the family's words for what it refuses.
    """
    architecture = Architecture.from_config(config)
    family = architecture.family
    model_type = family.model_type
    config_class = NemotronConfig if family.has_own_class else CONFIG_MAPPING[model_type]
    # A deep copy: transformers writes into rope_scaling.
    settings = {key: deepcopy(value) for key, value in config.items() if key not in _KERNELS}
    if settings.get("head_dim", 0) is None:  # which some classes do not take
        settings["head_dim"] = architecture.head_dim
    if type(rows := settings.get("vocab_size")) is int:
        settings = with_usable_pad(settings, rows)
    with foreign_parser("config.json", ArchitectureError, "mend it, or fetch it again"):
        try:
            made: PreTrainedConfig = config_class.from_dict(settings)
        except _REFUSALS as error:
            reason = " ".join(str(error.__cause__ or error).split())
            where = _refused_setting(config_class, settings)
            raise ArchitectureError(f"{model_type} refuses this config: {where}{reason}") from error
    activation = getattr(made, family.activation, None)
    if isinstance(activation, str) and activation not in ACT2FN:
        raise ArchitectureError(
            f"{model_type} refuses this config: {family.activation} {activation!r:.40}: it is not "
            "an activation that transformers knows"
        )
    check_rotary(config)
    return made


def takes_sizes(source: Source, target: Architecture) -> bool:
    """Whether the family's own config class takes these sizes."""
    try:
        hub_config(source.config_at(target))
    except ArchitectureError:
        return False
    return True


def _refused_setting(config_class: type[PreTrainedConfig], settings: Mapping[str, Any]) -> str:
    """The setting without which the family takes the others; nothing where none is alone at fault.

    Some of transformers' complaints name neither a setting nor its value.
    """
    for name, value in settings.items():
        with suppress(*_REFUSALS):
            others = {key: deepcopy(settings[key]) for key in settings if key != name}
            config_class.from_dict(others)
            return f"{name} {value!r}: "
    return ""


def new_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A causal language model with random weights, by torch's global seed, in float32.

    Raises ArchitectureError for what the config cannot be built with, as an unknown activation.
    """
    with foreign_parser("config.json", ArchitectureError, "mend it, or fetch it again"):
        if isinstance(config, NemotronConfig):
            return NemotronForCausalLM(config)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return model


def check_builds(config: Mapping[str, Any]) -> None:
    """Refuse a config.json of which the family's class makes no model; nothing is allocated.

    Layers are built alike, so one is enough. Raises ArchitectureError.
    """
    smallest = {**config, "num_hidden_layers": 1}
    for key in Architecture.from_config(config).family.layer_lists:
        if isinstance(values := config.get(key), list):
            smallest[key] = values[-1:]
    with empty_weights():
        new_model(hub_config(smallest))


def load_model(
    source: Source, *, dtype: torch.dtype | None = None, device: str = "cpu"
) -> PreTrainedModel:
    """The model with its weights, strictly, in evaluation mode.

    `dtype` None computes in the checkpoint's own where the device multiplies it in hardware, else
    in float32. Raises SourceError for weights that are incomplete or not finite.
    """
    tensors = source.weights  # refused before a module is built
    config = hub_config(source.config)
    with empty_weights():
        model = new_model(config)
    weights = {}
    for name, stored in tensors.items():
        tensor = stored.read()
        check_finite(tensor, name, source.name)
        weights[name] = tensor.to(device=device, dtype=dtype or fast_dtype(tensor.dtype, device))
    if source.architecture.tie_word_embeddings:
        weights[HEAD] = weights[EMBEDDING]
    with foreign_parser(f"{source.name}/config.json", ArchitectureError, "fetch it again"):
        model.load_state_dict(weights, strict=True, assign=True)
        model.tie_weights()
    generation = source.companions.file(GENERATION)
    if generation is not None:
        model.generation_config = read_generation_config(generation, source.name)
        if not has_row(model.generation_config.pad_token_id, source.architecture.vocab_size):
            model.generation_config.pad_token_id = None
    model.to(torch.device(device))  # type: ignore[arg-type]  # transformers wraps it without types
    model.eval()
    return model


def read_generation_config(path: Path, model: str) -> GenerationConfig:
    """The settings in the generation_config.json of a model called `model`. Raises SourceError.

    transformers accepts token ids of any type there, and fails only when it generates.
    """
    name = f"{model}/{GENERATION}"
    settings = read_object(path, SourceError, _GENERATION_REMEDY, called=name)
    check_kind(settings, _GENERATION_KINDS, name, SourceError, _GENERATION_REMEDY)
    with foreign_parser(name, SourceError, _GENERATION_REMEDY):
        return GenerationConfig.from_pretrained(path.parent)


def loaded_bytes(source: Source, dtype: torch.dtype | None, device: str) -> int:
    """Bytes of a model's weights on the device; `dtype` as for `load_model`."""
    return sum(
        tensor.nbytes
        // tensor.dtype.itemsize
        * (dtype or fast_dtype(tensor.dtype, device)).itemsize
        for tensor in source.weights.values()
    )


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights, with the ids of its tokenizer.json.

    Raises TokenizerError where there is none, ArchitectureError for a config that is damaged: the
    tokenizer's class may depend on it.
    """
    hub_config(source.config)
    files = list(source.companions.tokenizer_files())
    if not files:
        raise TokenizerError(f"{source.name} has no tokenizer files: add tokenizer.json")
    tokenizer = open_tokenizer(files[0].parent, source.name)
    with foreign_parser(f"{source.name}: its tokenizer", TokenizerError, "fetch it again"):
        ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    if not all(end is None or type(end) is int for end in ends):
        raise TokenizerError(
            f"{source.name}: its tokenizer begins, ends or pads with {ends!r:.80}, no token ids: "
            "fetch tokenizer_config.json again"
        )
    return tokenizer


def sequence_length(source: Source, given: int | None) -> int:
    """Tokens in a sequence: as given, else the model's context, at most 4096.

    Raises TargetError for more than the context, where scores and weights would come out wrong.
    """
    context = _context(source)
    if given is None:
        return min(context or MAX_SEQ_LEN, MAX_SEQ_LEN)
    longest = longest_sequence(source)
    if longest is not None and given > longest:
        raise TargetError(
            f"--seq-len is {given:,}, and {source.name} is a model for sequences of {longest:,} "
            "tokens: give that or less, or change max_position_embeddings in its config.json"
        )
    return given


def longest_sequence(source: Source) -> int | None:
    """The model's context in tokens, with its rotary scaling; None where no config states it."""
    context = _context(source)
    return None if context is None else lengthened_context(source.config, context)


def warn_beyond_context(source: Source, tokens: int, options: str) -> None:
    """Log that `options`, such as "--seq-len is", are more tokens than the model's context."""
    longest = longest_sequence(source)
    if longest is not None and tokens > longest:
        logger.warning(
            "%s may predict worse beyond its context of %s tokens: %s %s",
            *(source.name, f"{longest:,}", options, f"{tokens:,}"),
        )


def _context(source: Source) -> int | None:
    context = source.config.get("max_position_embeddings")
    if context is not None and (type(context) is not int or context < 1):
        raise ArchitectureError(
            f"config.json says max_position_embeddings: {context!r:.40}; it must be a whole number "
            "above 0"
        )
    return context


def default_device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_dtype(stored: torch.dtype, device: str) -> torch.dtype:
    """`stored`, or float32 where this device only emulates it and is several times slower."""
    if stored == torch.float32 or device != "cpu":
        return stored
    capabilities = torch.cpu.get_capabilities()
    in_hardware = {
        torch.bfloat16: ("avx512_bf16", "amx_bf16"),
        torch.float16: ("avx512_fp16", "amx_fp16"),
    }
    return stored if any(map(capabilities.get, in_hardware.get(stored, ()))) else torch.float32
