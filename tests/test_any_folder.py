"""Random model folders: minitron prunes and converts them as transformers by hand, or refuses them.

A run of the suite tests a few; CONTRIBUTING has the command that tests many.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis.strategies import (
    DataObject,
    DrawFn,
    booleans,
    composite,
    data,
    integers,
    sampled_from,
)
from sentencepiece import SentencePieceTrainer
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

import minitron
from minitron.errors import MinitronError
from tests.any_folder import GivenFolder, given_folders
from tests.tiny import weights_of

# The suite draws the same few examples in every run; a number of examples draws new ones.
MANY = int(os.environ.get("MINITRON_ANY_FOLDER", "0"))
bounded = settings(
    max_examples=MANY or 50,
    derandomize=not MANY,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

IDS = torch.tensor([[1, 3, 4, 5, 6, 3, 1, 4, 2]])
FORMATS = ("zarr", "torch_dist")
VOCAB_SIZE = 20
Indices = list[int]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.model of VOCAB_SIZE pieces."""
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    with path.open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(["a bad cab", "dead beef fed a dad"] * 3),
            model_writer=file,
            vocab_size=VOCAB_SIZE,
            model_type="bpe",
            num_threads=1,
            minloglevel=2,
        )
    return path


@contextmanager
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.float().eval()(IDS, use_cache=False).logits


def load_strictly(folder: Path) -> PreTrainedModel:
    """Load with transformers, which must find exactly the tensors of the model."""
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def of_runs(runs: str) -> Indices:
    """ "0-2,5" as [0, 1, 2, 5]."""
    pairs = [run.partition("-") for run in runs.split(",")]
    return [at for first, _, last in pairs for at in range(int(first), int(last or first) + 1)]


def prune_by_hand(
    source: GivenFolder, kept: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A transformers model of the target's sizes with the kept parts of the source's tensors."""
    layers = of_runs(kept["layers"]) if "layers" in kept else [*range(source.num_hidden_layers)]
    hidden = of_runs(kept["hidden"]) if "hidden" in kept else [*range(source.hidden_size)]

    def of_layer(axis: str, at: int, size: int) -> Indices:
        return of_runs(kept[axis][at]) if axis in kept else [*range(size)]

    def rows_of(heads: Indices) -> Indices:
        return [head * source.head_dim + at for head in heads for at in range(source.head_dim)]

    state = {}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = source.state[name][:, hidden]
    for name in ("model.norm.weight", "model.norm.bias"):
        if name in source.state:
            state[name] = source.state[name][hidden]
    ffns, queries, keys = [], [], []
    for at, layer in enumerate(layers):
        ffn = of_layer("ffn", at, source.intermediate_size)
        query = of_layer("heads", at, source.heads)
        key = of_layer("kv_heads", at, source.num_key_value_heads)
        ffns, queries, keys = [*ffns, len(ffn)], [*queries, len(query)], [*keys, len(key)]
        rows = {"q_proj": rows_of(query), "k_proj": rows_of(key), "v_proj": rows_of(key)}
        rows |= {"gate_proj": ffn, "up_proj": ffn, "o_proj": hidden, "down_proj": hidden}
        columns = {"o_proj": rows_of(query), "down_proj": ffn}
        for name, tensor in source.state.items():
            head, _, tail = name.partition(f"model.layers.{layer}.")
            if head or not tail:
                continue
            module = tail.split(".")[-2]
            if module not in ("q_norm", "k_norm"):
                tensor = tensor[rows.get(module, hidden)]
            if tensor.ndim == 2:
                tensor = tensor[:, columns.get(module, hidden)]
            state[f"model.layers.{at}.{tail}"] = tensor
    config = type(source.config).from_dict(source.config.to_dict())
    config.update(
        {
            "hidden_size": len(hidden),
            "intermediate_size": ffns[0],
            "num_hidden_layers": len(layers),
            "num_attention_heads": queries[0],
            "num_key_value_heads": keys[0],
        }
    )
    if source.layer_types is not None:
        config.layer_types = [source.layer_types[layer] for layer in layers]
    assert {len(set(sizes)) for sizes in (ffns, queries, keys)} == {1}
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, source.dtype))
    model.load_state_dict(state)
    return model, state


def check_equal(out: Path, source: GivenFolder, kept: dict[str, Any]) -> None:
    """The folder has the tensors, logits, sizes and generation settings of the one made by hand."""
    model, state = prune_by_hand(source, kept)
    if source.is_tied:
        del state["lm_head.weight"]
    written = weights_of(out)
    assert written.keys() == state.keys()
    for name, tensor in written.items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name]), name
    loaded = load_strictly(out)
    assert loaded.dtype == getattr(torch, source.dtype)
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=1e-5, atol=1e-5)
    if source.has_generation_config:
        found = GenerationConfig.from_pretrained(out)
        assert (found.eos_token_id, found.do_sample, found.top_k) == ([2, 3], True, 7)


def check_refusal(error: MinitronError, source: Path, *, may_be: bool) -> None:
    """The error is one line, nothing was written, and the error was possible."""
    message = str(error)
    event(f"refused: {message.replace(str(source), '')}"[:60])
    assert 0 < len(message) <= 500
    assert message.isprintable()
    assert list(source.parent.iterdir()) == [source]
    assert may_be, message


@composite
def targets(draw: DrawFn, source: GivenFolder) -> dict[str, int]:
    """Sizes of a pruned model; most are possible."""
    limits = {
        "hidden_size": source.hidden_size,
        "intermediate_size": source.intermediate_size,
        "num_hidden_layers": source.num_hidden_layers,
    }
    sizes = {key: draw(integers(1, most)) for key, most in limits.items() if draw(booleans())}
    groups = draw(integers(1, source.num_key_value_heads))
    heads = groups * draw(integers(1, source.heads_per_group))
    whole = source.num_key_value_heads * draw(integers(1, source.heads_per_group))
    cuts: list[dict[str, int]] = [
        {},
        {"num_attention_heads": whole if source.heads_per_group > 1 else groups},
        {"num_key_value_heads": groups},
        {"num_attention_heads": heads, "num_key_value_heads": groups},
        {"num_attention_heads": draw(integers(1, source.heads + 1))},
    ]
    sizes |= draw(sampled_from(cuts))
    if source.model_type == "llama" and "hidden_size" in sizes and draw(integers(0, 3)):
        heads, _ = heads_after(source, sizes)
        sizes["hidden_size"] = max(heads, sizes["hidden_size"] // heads * heads)
    # Without any size prune refuses; at the source's own it cuts nothing.
    return sizes or {"num_hidden_layers": source.num_hidden_layers}


def heads_after(source: GivenFolder, sizes: dict[str, int]) -> tuple[int, int]:
    """Query heads and KV heads of the target; the one that is not given follows from the other."""
    heads, groups = sizes.get("num_attention_heads"), sizes.get("num_key_value_heads")
    if groups is None:
        alone = source.heads_per_group == 1
        groups = heads if heads and alone else source.num_key_value_heads
    return heads or groups * source.heads_per_group, groups


def is_cut(source: GivenFolder, sizes: dict[str, int]) -> bool:
    """Whether the family allows these sizes, and none is larger than the source's."""
    heads, groups = heads_after(source, sizes)
    hidden = sizes.get("hidden_size", source.hidden_size)
    fits = heads % groups == 0 and heads // groups <= source.heads_per_group
    fits &= groups <= source.num_key_value_heads and hidden <= source.hidden_size
    if source.model_type == "llama":
        fits &= hidden % heads == 0
    return fits and (heads, groups) <= (source.heads, source.num_key_value_heads)


@given(given_folders(), data())
@bounded
def test_any_folder_is_pruned_as_by_hand_or_refused_in_one_line(
    source: GivenFolder, drawn: DataObject
) -> None:
    sizes = drawn.draw(targets(source))
    scores = drawn.draw(sampled_from(["random", "magnitude"]))
    with place() as folder:
        path, out = source.write(folder / "source"), folder / "out"
        try:
            minitron.prune(str(path), str(out), **sizes, scores=scores)
        except MinitronError as error:
            check_refusal(error, path, may_be=not is_cut(source, sizes))
        else:
            event("pruned")
            check_equal(out, source, json.loads((out / "minitron.json").read_text())["kept"])


@given(given_folders())
@bounded
def test_any_folder_is_converted_with_the_same_numbers(source: GivenFolder) -> None:
    with place() as folder:
        path, out = source.write(folder / "source"), folder / "out"
        minitron.convert(str(path), str(out))
        check_equal(out, source, {})


@given(given_folders(("nemotron",)), sampled_from(FORMATS))
@bounded
def test_any_nemotron_comes_back_from_a_nemo_or_is_refused_in_one_line(
    vocabulary: Path, source: GivenFolder, dist_format: str
) -> None:
    source = replace(source, vocab_size=VOCAB_SIZE)
    with place() as folder:
        path, between, out = source.write(folder / "source"), folder / "m.nemo", folder / "out"
        shutil.copy(vocabulary, path)
        try:
            minitron.convert(str(path), str(between), to="nemo", dist_format=dist_format)
        except MinitronError as error:
            check_refusal(error, path, may_be=not source.fits_nemo)
        else:
            event("converted")
            minitron.convert(str(between), str(out))
            check_equal(out, replace(source, has_generation_config=False), {})
