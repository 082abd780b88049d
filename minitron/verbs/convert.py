"""`minitron convert`: bring a model from any readable format to another.

convert(source="minitron-8b-base.nemo", out="minitron-8b-base")
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from minitron.errors import TargetError, TokenizerError
from minitron.files.dtypes import dtype_named, name_of
from minitron.files.lazy_tensor import Cast, LazyTensor
from minitron.files.tensor_stream import CheckedTensor, Piece, stream_tensors
from minitron.files.unfinished import unfinished_file, unfinished_folder
from minitron.model.engines import load_notes
from minitron.model.source import Source
from minitron.options import check_unset
from minitron.printing import FIRST_WORDS, first_use, print_next
from minitron.progress import Progress
from minitron.recipe import record_of, verb
from minitron.recipes.conversion import ConvertRecipe, GgufDType
from minitron.records.folder_writer import (
    check_companions,
    specs_of,
    write_companions,
    write_weights,
)
from minitron.records.model_card import write_card
from minitron.records.record_writer import inherited_from, public_record, write_record
from minitron.sources.loading import hub_config, load_model, load_tokenizer
from minitron.sources.opening import open_source, output_at

if TYPE_CHECKING:
    from minitron.conversion.nemo_tokenizer import FoundTokenizer

logger = logging.getLogger(__name__)

_NEMO = ("nemo", "nemo2")
_SIZE = re.compile(r"\d+ ?[KMGT]B", re.IGNORECASE)
_TARGETS_OF_OPTION = {  # of the options that only some targets have
    "tp": ("trtllm",),
    "pp": ("trtllm",),
    "dist_format": ("nemo",),
    "max_shard_size": ("hub",),
}


@verb(ConvertRecipe)
def convert(recipe: ConvertRecipe) -> Path:
    """Bring a model to another format: Hub folder, `.nemo`, NeMo 2, TensorRT-LLM, ONNX or GGUF.

    Weights are streamed: bytes that need no change are copied from file to file, the rest is
    computed some megabytes at a time (ONNX loads the model). Returns `out`. Raises a MinitronError,
    with nothing written, for a source that cannot be read or that the target cannot hold.
    """
    out = output_at(recipe.out)
    _check_options(recipe)
    source = open_source(
        recipe.source, keep_vocab_padding=recipe.keep_vocab_padding, low_disk=recipe.low_disk
    )
    if source.format != "nemo":
        check_unset(recipe, ("keep_vocab_padding",), "on a source that is no .nemo")
    model = _Conversion(recipe, source, _checked_config(source, recipe))
    if recipe.to == "hub":
        for note in load_notes(model.config):
            logger.warning("%s", note)
    _WRITERS[recipe.to](model, out)
    return out


def command(recipe: ConvertRecipe) -> None:
    """What the command line runs and prints."""
    print(f"{convert(**vars(recipe))}: written")
    if recipe.to == "gguf":
        print_next(["llama-cli", "-m", recipe.out, "-p", FIRST_WORDS, "-n", 64])
    if recipe.to in ("hub", *_NEMO):
        made = open_source(recipe.out, reads_weights=False)
        has_tokenizer = bool(made.companions.tokenizer_names)
        print_next(first_use(recipe.out, has_tokenizer=has_tokenizer))


@dataclass(frozen=True)
class _Conversion:
    """A source and what it becomes: everything that is known before a weight is read."""

    recipe: ConvertRecipe
    source: Source
    config: Mapping[str, Any]  # the config.json to write

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The tensors in the target's dtype."""
        if self.recipe.dtype is None:
            return self.source.weights
        return {name: Cast(tensor, self.dtype) for name, tensor in self.source.weights.items()}

    @property
    def dtype(self) -> torch.dtype:
        """That of the recipe, else that of the largest tensor."""
        if self.recipe.dtype is not None:
            return dtype_named(self.recipe.dtype)
        return max(self.source.weights.values(), key=lambda tensor: tensor.nbytes).dtype

    def finite(self, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """Tensors, each refused as it is read where it is not finite, unless --no-check."""
        if not self.recipe.check:
            return tensors
        return {
            name: CheckedTensor(tensor, name, self.source.name) for name, tensor in tensors.items()
        }


@dataclass(frozen=True)
class _Tokenizer:
    """The tokenizer of a NeMo checkpoint: a SentencePiece model, else an id on the Hub."""

    on_hub: "FoundTokenizer | None"  # None where the archive carries `model_file`
    size: int
    model_file: Path | None

    @classmethod
    def of(cls, source: Source) -> "_Tokenizer":
        """Raises TokenizerError for a model that has neither."""
        from minitron.conversion.nemo_tokenizer import FoundTokenizer
        from minitron.conversion.sentencepiece_model import read_model

        files = {path.name: path for path in source.companions.tokenizer_files()}
        if "tokenizer.model" in files:
            size = len(read_model(files["tokenizer.model"]).pieces)
            return cls(None, size, files["tokenizer.model"])
        if files and source.format == "hub" and not Path(source.name).exists():
            on_hub = FoundTokenizer("huggingface", hub_id=source.name)
            return cls(on_hub, source.architecture.vocab_size, None)
        raise TokenizerError(
            f"{source.name} has no tokenizer.model: a .nemo carries a SentencePiece model, add it"
        )


def _check_options(recipe: ConvertRecipe) -> None:
    """Refuse options that the target does not have."""
    for name, targets in _TARGETS_OF_OPTION.items():
        if getattr(recipe, name) != _DEFAULTS[name] and recipe.to not in targets:
            flag = "--" + name.replace("_", "-")
            raise TargetError(f"{flag} is for --to {' or '.join(targets)}, not {recipe.to}")
    if recipe.to != "gguf" and recipe.dtype in get_args(GgufDType):
        raise TargetError(f"--dtype {recipe.dtype} is for --to gguf, not {recipe.to}")
    if recipe.to == "onnx":
        check_unset(recipe, ("check",), "with --to onnx, which loads the model")
    if not _SIZE.fullmatch(recipe.max_shard_size):
        raise TargetError(
            f"--max-shard-size is {recipe.max_shard_size!r}: write a size, such as 2GB"
        )


def _checked_config(source: Source, recipe: ConvertRecipe) -> Mapping[str, Any]:
    """The config.json to write, once it is known that the target holds the source."""
    architecture = source.architecture
    if recipe.to in _NEMO and recipe.to not in architecture.family.formats:
        raise TargetError(
            f"{source.name} is a {architecture.model_type}: --to {recipe.to} takes only nemotron; "
            f"NeMo itself imports a Hub folder of another family, as --to hub writes it"
        )
    source.check_weights()
    config = source.config_at(architecture)
    hub_config(config)
    return config


def _write_hub(model: _Conversion, out: Path) -> None:
    recipe, source = model.recipe, model.source
    inherited = inherited_from(source)
    check_companions(source, model.config)
    with unfinished_folder(out, asdict(recipe)) as folder, ThreadPoolExecutor(1) as beside:
        # A large tokenizer takes as long to build and prove as the weights to copy.
        companions = beside.submit(write_companions, folder, source, model.config, model.dtype)
        pieces = stream_tensors(model.tensors, source.name, check=recipe.check)
        write_weights(
            folder,
            specs_of(model.tensors),
            _until_failure(pieces, companions),
            max_shard_size=recipe.max_shard_size,
        )
        companions.result()
        write_record(
            folder,
            "convert",
            record_of(recipe),
            source,
            target=source.architecture,
            inherited=inherited,
        )
        write_card(folder)


def _until_failure(
    pieces: Iterator[tuple[str, Piece]], beside: Future[None]
) -> Iterator[tuple[str, Piece]]:
    """The pieces, until the work beside them fails."""
    for piece in pieces:
        if beside.done():
            beside.result()
        yield piece


def _write_nemo(model: _Conversion, out: Path) -> None:
    """Write a `.nemo`, or a NeMo 2 folder."""
    from minitron.conversion.hub_to_nemo import nemo1_settings, nemo2_settings
    from minitron.conversion.megatron_names import megatron_tensors
    from minitron.conversion.nemo_writer import write_nemo, write_nemo2

    recipe, architecture = model.recipe, model.source.architecture
    tokenizer = _Tokenizer.of(model.source)
    known: dict[str, Any] = {
        "tokenizer": tokenizer.on_hub,
        "tokenizer_size": tokenizer.size,
        "dtype": model.dtype,
    }
    tensors = megatron_tensors(
        model.finite(model.tensors), architecture, padded_vocab_size=architecture.vocab_size
    )
    if recipe.to == "nemo":
        settings = nemo1_settings(model.config, **known, dist_ckpt_format=recipe.dist_format)
        with unfinished_file(out) as file, _progress(tensors) as progress:
            write_nemo(
                file,
                settings,
                tensors,
                tokenizer_model=tokenizer.model_file,
                dist_format=recipe.dist_format,
                progress=progress.advance,
            )
    else:
        settings = nemo2_settings(model.config, **known)
        with unfinished_folder(out, asdict(recipe)) as folder, _progress(tensors) as progress:
            write_nemo2(
                folder,
                settings,
                tensors,
                tokenizer_model=tokenizer.model_file,
                progress=progress.advance,
            )


def _write_trtllm(model: _Conversion, out: Path) -> None:
    from minitron.conversion.trtllm_checkpoint import write_trtllm

    recipe = model.recipe
    with unfinished_folder(out, asdict(recipe)) as folder, _progress(model.tensors) as progress:
        write_trtllm(
            folder,
            model.config,
            model.finite(model.source.weights),  # norms are made from what is stored, then cast
            tp=recipe.tp,
            pp=recipe.pp,
            dtype=model.dtype,
            progress=progress.advance,
        )


def _write_onnx(model: _Conversion, out: Path) -> None:
    from minitron.conversion.onnx_export import export_onnx

    recipe = model.recipe
    if recipe.dtype not in (None, "float32"):
        raise TargetError(f"--dtype {recipe.dtype} is not for --to onnx, which is float32")
    loaded = load_model(model.source, dtype=torch.float32)
    with unfinished_folder(out, asdict(recipe)) as folder:
        write_companions(folder, model.source, model.config, torch.float32)
        difference = export_onnx(loaded, folder)
    logger.info("onnxruntime agrees with torch to %.1e of the largest logit", difference)


def _write_gguf(model: _Conversion, out: Path) -> None:
    from minitron.conversion.gguf_vocabulary import tokenizer_metadata
    from minitron.conversion.gguf_writer import check_loadable, kind_of, write_gguf

    recipe, source = model.recipe, model.source
    check_loadable(model.config)
    files = {path.name: path for path in source.companions.tokenizer_files()}
    metadata = _gguf_origin(source)
    if files:
        metadata |= tokenizer_metadata(
            load_tokenizer(source),
            files.get("tokenizer.model"),
            vocab_size=source.architecture.vocab_size,
        )
    else:
        logger.warning("%s has no tokenizer: llama.cpp will take token ids alone", source.name)
        metadata["tokenizer.ggml.model"] = "none"
    with unfinished_file(out) as file, _progress(source.weights) as progress:
        write_gguf(
            file,
            {**hub_config(model.config).to_dict(), **model.config},
            source.weights,
            metadata=metadata,
            kind=kind_of(recipe.dtype or name_of(model.dtype)),
            source=source.name,
            check=recipe.check,
            progress=progress.advance,
        )


def _gguf_origin(source: Source) -> dict[str, Any]:
    """What a GGUF file states of its source: name, license, languages and minitron's record."""
    inherited = inherited_from(source)
    card, made = inherited["metadata"], inherited.get("made")
    languages = card.get("language")
    stated = {
        "general.name": Path(source.name).name,
        "general.license": card.get("license"),
        "general.license.name": card.get("license_name"),
        "general.license.link": card.get("license_link"),
        "general.languages": [languages] if isinstance(languages, str) else languages,
        "minitron.record": made and json.dumps(public_record(made)),
    }
    return {key: value for key, value in stated.items() if value}


def _progress(tensors: Mapping[str, LazyTensor]) -> Progress:
    """Progress of writing these tensors."""
    return Progress("write", total=sum(each.nbytes for each in tensors.values()), unit="byte")


_DEFAULTS = {field.name: field.default for field in fields(ConvertRecipe)}
_WRITERS: Mapping[str, Callable[[_Conversion, Path], None]] = {
    "hub": _write_hub,
    "nemo": _write_nemo,
    "nemo2": _write_nemo,
    "trtllm": _write_trtllm,
    "onnx": _write_onnx,
    "gguf": _write_gguf,
}
