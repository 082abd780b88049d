"""Source: any model a user can name, opened as one lazy protocol, and loaded where it must run.

`SRC` is a folder, a Hub id (`owner/name`, `owner/name@revision`), a `.nemo` file or folder, one in
a repository (`owner/name:path/file.nemo`), or a name of the embedded zoo (`tiny`). Knows how each
is opened and how a model and its tokenizer are made from it; does not know what is done with them.

    source = open_source("tiny")
    model = load_model(source)
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import is_offline_mode
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import ACT2FN
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from minitron.errors import ArchitectureError, SourceError, TargetError, TokenizerError
from minitron.files.finite import FLOATS, check_finite
from minitron.files.hub_repository import HubRepository
from minitron.files.lazy_tensor import LazyTensor
from minitron.files.partial_file import bring
from minitron.foreign_parser import foreign_parser
from minitron.model.architecture import Architecture, check_rotary
from minitron.model.families import EMBEDDING, HEAD
from minitron.model.tensor_names import some_of
from minitron.model.token_ids import has_row, with_usable_pad
from minitron.sources.empty_weights import empty_weights
from minitron.sources.generation_settings import read_generation_config
from minitron.sources.hub_folder import HubFolder
from minitron.text.tokenizer_ids import open_tokenizer
from modeling_nemotron import NemotronConfig, NemotronForCausalLM

MAX_SEQ_LEN = 4096  # the context of the Nemotron-4 family
_HUB_ID = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<nemo>[^:]+\.nemo))?"
)
_KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
# What transformers raises for a config that it refuses.
_REFUSALS = (AttributeError, KeyError, StrictDataclassError, TypeError, ValueError)
_GZIP = b"\x1f\x8b"
_LEFTOVERS = ("rotary_emb.inv_freq", "attention.masked_bias")  # buffers of earlier transformers


class Source(Protocol):
    """A model that can be read tensor by tensor."""

    name: str
    format: str  # "hub" or "nemo"
    revision: str | None
    config: Mapping[str, Any]

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """Every tensor, located but not read."""

    @property
    def layout(self) -> str | None:
        """How the weights lie; None where there are none."""

    @property
    def writer(self) -> str | None:
        """What the weights' format says of itself; None where it says nothing."""

    def file(self, name: str) -> Path | None:
        """A file beside the weights."""

    @property
    def tokenizer_names(self) -> list[str]:
        """What the tokenizer is made of, by name."""

    def tokenizer_files(self) -> Iterator[Path]:
        """Whatever a tokenizer may need."""

    def license_files(self) -> Iterator[Path]:
        """The terms that a derived model must carry on."""


def zoo() -> dict[str, Path]:
    """The embedded models: name to folder."""
    root = Path(str(resources.files("minitron") / "zoo"))
    return {path.parent.name: path.parent for path in sorted(root.glob("*/config.json"))}


def open_source(
    name: str,
    *,
    keep_vocab_padding: bool = False,
    reads_weights: bool = True,
    low_disk: bool = False,
) -> Source:
    """Open what the user named; no weight is read. Raises SourceError.

    A NeMo checkpoint's vocabulary is cut to its tokenizer's size unless its padding is kept. One in
    a repository is fetched, but where no weight will be read only the pieces that describe it.
    With `low_disk` weights on the Hub are read there by ranges, again each time, and never stored.
    A model folder that lies here goes before one of the zoo with the same name.
    """
    models, path = zoo(), Path(name)
    if name in models:
        is_here = (path / "config.json").is_file()
        return (
            HubFolder.at(path, f"./{name}") if is_here else HubFolder.embedded(models[name], name)
        )
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise SourceError(f"cannot look at {name[:80]!r}: {reason}") from error
    if path.is_file() or (path.is_dir() and _is_nemo_folder(path)):
        from minitron.conversion.nemo_source import NemoSource  # reached only where it is needed

        return NemoSource(path, keep_vocab_padding=keep_vocab_padding)
    if path.is_dir():
        return HubFolder.at(path)
    parsed = _HUB_ID.fullmatch(name)
    if parsed is None:
        raise SourceError(
            f"{name} does not exist; name a folder, a .nemo, a Hub id (owner/name) or one of the "
            "zoo: " + ", ".join(models)
        )
    repo, revision, nemo = parsed["repo"], parsed["revision"], parsed["nemo"]
    if nemo is None:
        return HubFolder(HubRepository(repo, revision), low_disk=low_disk)
    if any(part in ("", ".", "..") for part in nemo.split("/")):
        raise SourceError(f"{name} leads outside its repository: name a path within")
    if low_disk and reads_weights:
        raise SourceError(f"{name} can be had only whole: do it without --low-disk")
    path, commit = _nemo_on_hub(repo, revision, nemo, whole=reads_weights)
    return _named_nemo(path, f"{repo}:{nemo}", commit, keep_vocab_padding=keep_vocab_padding)


def _nemo_on_hub(
    repo: str, revision: str | None, nemo: str, *, whole: bool
) -> tuple[Path, str | None]:
    """A `.nemo` of a repository, or a stand-in that brings what is read of it, and the commit."""
    if not whole and not is_offline_mode():
        pinned = HubRepository(repo, revision, first=None)
        partial = pinned.partial_file(nemo)
        if partial is not None:
            bring(partial, 0, 2)
            with partial.open("rb") as file:
                if file.read(2) != _GZIP:  # that would have to be unpacked
                    return partial, pinned.revision
    repository = HubRepository(repo, revision, first=nemo)
    path = repository.file(nemo)
    assert path is not None, "it was there when the repository was opened"
    return path, repository.revision


def _named_nemo(path: Path, name: str, revision: str | None, *, keep_vocab_padding: bool) -> Source:
    """A NeMo checkpoint under the name and revision that it has on the Hub."""
    from minitron.conversion.nemo_source import NemoSource

    try:
        source = NemoSource(path, keep_vocab_padding=keep_vocab_padding)
    except (SourceError, ArchitectureError) as error:
        raise type(error)(str(error).replace(str(path), name)) from error
    source.name, source.revision = name, revision
    return source


def complete_tensors(source: Source, architecture: Architecture) -> dict[str, LazyTensor]:
    """The tensors that `architecture` asks for, in its order.

    Raises SourceError, before any weight is read, for one that is missing, of another shape, not
    of floating-point numbers, or that the family's table does not know.
    """
    stored = source.tensors
    shapes = architecture.shapes()
    missing = [name for name in shapes if name not in stored]
    if missing:
        raise SourceError(
            f"{source.name} has no tensor {some_of(missing)}: its weights are incomplete"
        )
    for name, shape in shapes.items():
        if stored[name].shape != shape:
            raise SourceError(
                f"{source.name}: {name} has shape {list(stored[name].shape)}, "
                f"but config.json asks for {list(shape)}"
            )
        if stored[name].dtype not in FLOATS:
            raise SourceError(
                f"{source.name}: {name} holds {str(stored[name].dtype).removeprefix('torch.')}, "
                "not floating-point numbers: start from the unquantized model"
            )
    tied = HEAD if architecture.tie_word_embeddings else ""
    unknown = [
        name
        for name in stored
        if name not in shapes and name != tied and not name.endswith(_LEFTOVERS)
    ]
    if unknown:
        raise SourceError(
            f"{source.name} has a tensor {some_of(unknown)} that no {architecture.model_type} has: "
            "its config.json is not that of these weights"
        )
    if tied in stored and not _equal(stored[tied], stored[EMBEDDING]):
        raise SourceError(
            f"{source.name}: lm_head.weight is not the embedding although tie_word_embeddings is "
            "set: set it to false in config.json"
        )
    return {name: stored[name] for name in shapes}


def hub_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """The family's own config object: ours for Nemotron, transformers' for the others.

    How attention is computed is not the config's to say: it could name a kernel on the Hub, which
    is code. Raises ArchitectureError with the family's own words for what it refuses.
    """
    model_type = config["model_type"]
    config_class = NemotronConfig if model_type == "nemotron" else CONFIG_MAPPING[model_type]
    # A deep copy: transformers writes into rope_scaling.
    settings = {key: deepcopy(value) for key, value in config.items() if key not in _KERNELS}
    if type(rows := settings.get("vocab_size")) is int:
        settings = with_usable_pad(settings, rows)
    with foreign_parser("config.json", ArchitectureError, "mend it, or fetch it again"):
        try:
            made: PreTrainedConfig = config_class.from_dict(settings)
        except _REFUSALS as error:
            reason = " ".join(str(error.__cause__ or error).split())
            where = _refused_setting(config_class, settings)
            raise ArchitectureError(f"{model_type} refuses this config: {where}{reason}") from error
    activation = getattr(made, "hidden_act", None)
    if isinstance(activation, str) and activation not in ACT2FN:
        raise ArchitectureError(
            f"{model_type} refuses this config: hidden_act {activation!r:.40}: it is not an "
            "activation that transformers knows"
        )
    check_rotary(config)
    return made


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
    if isinstance(kinds := config.get("layer_types"), list):
        smallest["layer_types"] = kinds[-1:]
    with empty_weights():
        new_model(hub_config(smallest))


def load_model(
    source: Source, *, dtype: torch.dtype | None = None, device: str = "cpu"
) -> PreTrainedModel:
    """The model with its weights, strictly, in evaluation mode.

    `dtype` None computes in the checkpoint's own where the device multiplies it in hardware, else
    in float32. Raises SourceError for weights that are incomplete or not finite.
    """
    architecture = Architecture.from_config(source.config)
    tensors = complete_tensors(source, architecture)
    config = hub_config(source.config)
    with empty_weights():
        model = new_model(config)
    weights = {}
    for name, stored in tensors.items():
        tensor = stored.read()
        check_finite(tensor, name, source.name)
        weights[name] = tensor.to(device=device, dtype=dtype or fast_dtype(tensor.dtype, device))
    if architecture.tie_word_embeddings:
        weights[HEAD] = weights[EMBEDDING]
    with foreign_parser(f"{source.name}/config.json", ArchitectureError, "fetch it again"):
        model.load_state_dict(weights, strict=True, assign=True)
        model.tie_weights()
    generation = source.file("generation_config.json")
    if generation is not None:
        model.generation_config = read_generation_config(generation, source.name)
        if not has_row(model.generation_config.pad_token_id, architecture.vocab_size):
            model.generation_config.pad_token_id = None
    model.to(torch.device(device))  # type: ignore[arg-type]  # transformers wraps it without types
    model.eval()
    return model


def loaded_bytes(source: Source, dtype: torch.dtype | None, device: str) -> int:
    """What a model's weights take on the device; `dtype` as for `load_model`."""
    tensors = complete_tensors(source, Architecture.from_config(source.config)).values()
    return sum(
        tensor.nbytes
        // tensor.dtype.itemsize
        * (dtype or fast_dtype(tensor.dtype, device)).itemsize
        for tensor in tensors
    )


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside the weights, with the ids of its tokenizer.json.

    Raises TokenizerError where there is none, ArchitectureError for a config that is damaged: the
    tokenizer's class may depend on it.
    """
    Architecture.from_config(source.config)
    hub_config(source.config)
    files = list(source.tokenizer_files())
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


def sequence_length(source: Source, wished: int | None) -> int:
    """Tokens in a sequence: as wished, else the model's context, at most 4096.

    Raises TargetError for fewer than one.
    """
    if wished is not None:
        if wished < 1:
            raise TargetError(f"--seq-len is {wished}: it must be at least 1")
        return wished
    context = source.config.get("max_position_embeddings") or MAX_SEQ_LEN
    if type(context) is not int or context < 1:
        raise ArchitectureError(
            f"config.json says max_position_embeddings: {context!r:.40}; it must be a whole number "
            "above 0"
        )
    return min(context, MAX_SEQ_LEN)


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


def _is_nemo_folder(path: Path) -> bool:
    """Whether it is an unpacked `.nemo`, or a NeMo 2 checkpoint."""
    if (path / "config.json").exists():
        return False
    return (path / "model_config.yaml").exists() or (path / "context").is_dir()


def _equal(one: LazyTensor, other: LazyTensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    rows = 4096
    return all(
        torch.equal(one.read(start, start + rows), other.read(start, start + rows))
        for start in range(0, one.shape[0], rows)
    )
