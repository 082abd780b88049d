"""Exports a causal language model as an ONNX graph whose inputs and outputs hold the KV cache.

Inputs and outputs have the names and axes that optimum's ORTModelForCausalLM reads. A loaded model
of any family is traced in float32, and `check_onnx` compares the graph with it. Needs the extra
`onnx`.

    export_onnx(AutoModelForCausalLM.from_pretrained("OUT", dtype=torch.float32), Path("OUT.onnx"))
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from minitron.errors import MissingExtraError, SourceError, TargetError
from minitron.files.dtypes import name_of
from minitron.model.architecture import Architecture
from modeling_nemotron import CACHE_NAME

MODEL, DATA = "model.onnx", "model.onnx_data"
TOLERANCE = 1e-4  # of a logit, against the largest one or 1

# More bytes of weights get a file of their own: protobuf holds no 2 GB, and embedded weights are
# copied twice in memory, when written and when read.
_EMBEDDED_BYTES = 1 << 26
_PACKAGES = ("onnx", "onnxscript", "onnx_ir", "onnxruntime")
# The sizes of the example inputs. They differ, and none is 0 or 1, which torch.export treats as
# constants.
_BATCH, _LENGTH, _PAST = 2, 3, 5
# Prefills to check: the number of padding tokens at the left of each row, and the length.
_PREFILLS: Sequence[tuple[tuple[int, ...], int]] = (((0,), 7), ((0, 2, 4), 5), ((0, 0), 1))
_STEPS = (1, 1, 2)  # new tokens of each decode step
_WARNINGS = (  # of torch.onnx itself, on every export
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    (UserWarning, "# The axis name: .* will not be used"),
)


def export_onnx(model: PreTrainedModel, folder: Path) -> float:
    """Write and check model.onnx; returns the largest difference that `check_onnx` found.

    More than 64 MiB of weights are written to model.onnx_data. Raises MissingExtraError,
    TargetError for a model that is not in float32, cannot be traced or computes other logits as a
    graph, and SourceError for one whose logits are not finite; no file is left then.
    """
    for name in _PACKAGES:
        _package(name)
    if model.dtype != torch.float32:
        dtype = name_of(model.dtype)
        raise TargetError(f"the model is in {dtype}: load it in float32 to export it")
    folder.mkdir(parents=True, exist_ok=True)
    with _remove_on_error(folder):
        _save(_trace(model), folder, model.num_parameters() * 4)
        return check_onnx(model, folder)


def check_onnx(model: PreTrainedModel, folder: Path) -> float:
    """Compare model.onnx in onnxruntime with `model`: prefill, left padding and decode steps.

    Returns the largest difference of a logit, relative to the largest logit or 1. Raises
    TargetError above TOLERANCE and SourceError where the model's own logits are not finite.
    """
    runtime = _package("onnxruntime")
    options = runtime.SessionOptions()
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")  # a copy of all weights
    session = runtime.InferenceSession(folder / MODEL, options, providers=["CPUExecutionProvider"])
    worst = max(_difference(model, session, padding, length) for padding, length in _PREFILLS)
    if not worst <= TOLERANCE:
        raise TargetError(
            f"the exported graph's logits differ from the model's by {worst:.1e} of the largest, "
            f"more than {TOLERANCE}: this model cannot be exported to ONNX"
        )
    return worst


class _WithFlatCache(nn.Module):
    """The model with its cache as a list of tensors: keys and values of each layer in turn."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(keys, values, layer)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=True,
            **{CACHE_NAME: cache},
        )
        layers: list[Any] = cache.layers  # its type includes layers without keys
        present = [part for layer in layers for part in (layer.keys, layer.values)]
        return outputs.logits, *present


def _cache_names(model: PreTrainedModel) -> list[str]:
    layers = range(model.config.num_hidden_layers)
    return [f"{layer}.{part}" for layer in layers for part in ("key", "value")]


def _trace(model: PreTrainedModel) -> Any:
    """The ONNX program of torch.onnx."""
    cache = _cache_names(model)
    sizes = Architecture.from_config(model.config.to_dict())  # transformers' Qwen2 has no head_dim
    past_shape = (_BATCH, sizes.num_key_value_heads, _PAST, sizes.head_dim)
    example = (
        torch.zeros(_BATCH, _LENGTH, dtype=torch.long),
        torch.ones(_BATCH, _PAST + _LENGTH, dtype=torch.long),
        torch.arange(_PAST, _PAST + _LENGTH).expand(_BATCH, -1).clone(),
        [torch.zeros(past_shape) for _ in cache],
    )
    batch, new = "batch_size", "sequence_length"
    axes = (
        {0: batch, 1: new},
        {0: batch, 1: "total_sequence_length"},
        {0: batch, 1: new},
        [{0: batch, 2: "past_sequence_length"} for _ in cache],
    )
    with _prepare(model), _silence_exporter():
        try:
            return torch.onnx.export(
                _WithFlatCache(model).eval(),
                example,
                dynamo=True,
                dynamic_shapes=axes,
                input_names=[
                    "input_ids",
                    "attention_mask",
                    "position_ids",
                    *(f"past_key_values.{name}" for name in cache),
                ],
                output_names=["logits", *(f"present.{name}" for name in cache)],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise TargetError(f"the model cannot be exported to ONNX: {reason}") from error


def _save(program: Any, folder: Path, nbytes: int) -> None:
    external = DATA if nbytes > _EMBEDDED_BYTES else None
    remove_traces = _package("onnx_ir.passes.common").ClearMetadataAndDocStringPass()
    remove_traces(program.model)  # stack traces name paths of this machine
    _package("onnx_ir").save(program.model, folder / MODEL, external_data=external)


def _difference(
    model: PreTrainedModel, session: Any, padding: tuple[int, ...], length: int
) -> float:
    """The largest difference of a logit: the graph in steps with its cache, the model at once."""
    total = length + sum(_STEPS)
    seeded = torch.Generator().manual_seed(length)
    ids = torch.randint(model.config.vocab_size, (len(padding), total), generator=seeded)
    mask = (torch.arange(total) >= torch.tensor(padding)[:, None]).long()  # (batch, total)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), _prepare(model):
        expected = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    if not expected.isfinite().all():
        raise SourceError("the model's logits are not finite: the checkpoint is damaged")
    found = _run(session, ids, mask, positions, length)
    is_token = mask.bool()  # logits at padding have no meaning
    worst = (found - expected)[is_token].abs().max() / expected[is_token].abs().max().clamp(min=1)
    return float(worst.nan_to_num(nan=torch.inf))


def _run(session: Any, ids: Tensor, mask: Tensor, positions: Tensor, length: int) -> Tensor:
    """The graph's logits at every position: a prefill of `length`, then the decode steps."""
    past_inputs = session.get_inputs()[3:]
    shapes = [(len(ids), value.shape[1], 0, value.shape[3]) for value in past_inputs]
    past = [torch.zeros(shape).numpy() for shape in shapes]
    logits, start = [], 0
    for step in (length, *_STEPS):
        stop = start + step
        feed = {
            "input_ids": ids[:, start:stop].numpy(),
            "attention_mask": mask[:, :stop].numpy(),
            "position_ids": positions[:, start:stop].numpy(),
            **{value.name: part for value, part in zip(past_inputs, past, strict=True)},
        }
        new, *past = session.run(None, feed)
        logits.append(torch.from_numpy(new))
        start = stop
    return torch.cat(logits, dim=1)


@contextmanager
def _prepare(model: PreTrainedModel) -> Iterator[None]:
    """The model without dropout and with eager attention; both are restored afterwards.

    With left padding some rows attend to no token; for these, onnxruntime and torch compute sdpa
    differently.
    """
    attention, trains = model.config._attn_implementation, model.training
    model.eval()
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        model.train(trains)


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Without the warnings that torch.onnx gives on every export of any model."""
    logger = logging.getLogger(
        "torch.onnx._internal.exporter._registration"
    )  # warns of torchvision
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category, message in _WARNINGS:
                warnings.filterwarnings("ignore", message, category)
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _remove_on_error(folder: Path) -> Iterator[None]:
    """Remove the exported files if the block raises."""
    try:
        yield
    except BaseException:
        for name in (MODEL, DATA):
            (folder / name).unlink(missing_ok=True)
        raise


def _package(name: str) -> Any:
    """A module of the extra `onnx`."""
    try:
        return import_module(name)
    except ImportError:
        raise MissingExtraError(name, "onnx") from None
