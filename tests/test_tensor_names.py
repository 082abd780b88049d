"""A checkpoint opens under every name that transformers takes for its tensors, under no other."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import minitron
from minitron.errors import SourceError
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source
from tests.tiny import FAMILIES, tiny_folder, tiny_model, weights_of

E, H = "model.embed_tokens.weight", "lm_head.weight"
State = dict[str, torch.Tensor]
IDS = torch.arange(3, 20)[None]


def without_prefix(state: State) -> State:
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def one_layer_without_prefix(state: State) -> State:
    return {
        name.removeprefix("model.") if "layers.1." in name else name: tensor
        for name, tensor in state.items()
    }


def prefixed_twice(state: State) -> State:
    return {f"model.{name}": tensor for name, tensor in state.items()}


def only_the_output(state: State) -> State:
    return {H if name == E else name: tensor for name, tensor in state.items() if name != H}


NAMINGS: dict[str, Callable[[State], State]] = {
    "without prefix": without_prefix,
    "one layer without prefix": one_layer_without_prefix,
    "prefixed twice": prefixed_twice,
}
TIED_NAMINGS = {
    **NAMINGS,
    "only the output": only_the_output,
    "only the output, without prefix": lambda state: without_prefix(only_the_output(state)),
    "both": lambda state: {**state, H: state[E].clone()},
    "both, without prefix": lambda state: without_prefix({**state, H: state[E].clone()}),
}


def folder_of(path: Path, family: str, state: Mapping[str, torch.Tensor], *, tied: bool) -> Path:
    """A folder with this state dict, in two shards."""
    model = tiny_model(family, tie_word_embeddings=tied)
    model.config.save_pretrained(path)
    files = {}
    for number in range(2):
        file = f"model-{number + 1:05d}-of-00002.safetensors"
        part = dict(list(state.items())[number::2])
        save_file(part, path / file, metadata={"format": "pt"})
        files |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": files}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def state_of(family: str, *, tied: bool) -> State:
    state = tiny_model(family, tie_word_embeddings=tied).state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if not tied or name != H}


CASES = [
    *(("llama", True, naming) for naming in TIED_NAMINGS),
    *(("llama", False, naming) for naming in NAMINGS),
    *((family, True, "only the output, without prefix") for family in FAMILIES),
]


@pytest.mark.parametrize(("family", "tied", "naming"), CASES)
def test_what_transformers_opens_is_the_same_model_here(
    family: str, tied: bool, naming: str, tmp_path: Path
) -> None:
    state = TIED_NAMINGS[naming](state_of(family, tied=tied))
    folder = folder_of(tmp_path / "named", family, state, tied=tied)
    usual = tiny_folder(tmp_path / "usual", family, tie_word_embeddings=tied)
    source, expected = open_source(str(folder)), open_source(str(usual))
    assert source.digest == expected.digest
    for name, tensor in expected.weights.items():
        assert torch.equal(source.weights[name].read(), tensor.read()), name
    ours = load_model(source)(IDS).logits
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("naming", ["without prefix", "only the output, without prefix"])
def test_every_verb_gives_the_bytes_that_the_usual_names_give(naming: str, tmp_path: Path) -> None:
    state = TIED_NAMINGS[naming](state_of("llama", tied=True))
    folder = folder_of(tmp_path / "named", "llama", state, tied=True)
    usual = tiny_folder(tmp_path / "usual", "llama", tie_word_embeddings=True)
    for source, out in ((folder, "a"), (usual, "b")):
        minitron.prune(
            str(source), str(tmp_path / f"{out}p"), intermediate_size=40, scores="random"
        )
        minitron.convert(str(source), str(tmp_path / f"{out}c"))
        minitron.remake(str(tmp_path / f"{out}p"), str(tmp_path / f"{out}r"))
    for made in ("p", "c", "r"):
        one, other = weights_of(tmp_path / f"a{made}"), weights_of(tmp_path / f"b{made}")
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("listed", "held"), [(H, E), (E, H), ("embed_tokens.weight", H)])
def test_an_index_may_list_a_tied_name_that_no_shard_holds(
    listed: str, held: str, tmp_path: Path
) -> None:
    state = state_of("qwen2", tied=True)
    state[held] = state.pop(E)
    folder = folder_of(tmp_path / "m", "qwen2", state, tied=True)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][listed] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    ours = load_model(open_source(str(folder)))(IDS).logits
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits
    assert torch.equal(ours, theirs)


def test_an_index_that_lists_less_than_the_shards_hold_is_read_as_transformers_reads_it(
    tmp_path: Path,
) -> None:
    folder = folder_of(tmp_path / "m", "llama", state_of("llama", tied=False), tied=False)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["model.norm.weight"]
    index["weight_map"][H] = "model-00002-of-00002.safetensors"
    path.write_text(json.dumps(index))
    ours = load_model(open_source(str(folder)))(IDS).logits
    assert torch.equal(ours, AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits)


@pytest.mark.parametrize(
    ("renamed", "says"),
    [
        (lambda name: f"transformer.{name.removeprefix('model.')}", "has no tensor model.embed"),
        (lambda name: f"language_model.{name}", "has no tensor model.embed_tokens.weight, "),
        (lambda name: f"_orig_mod.{name}", " and 36 more: its weights are incomplete"),
    ],
)
def test_other_names_are_refused_by_the_first_and_their_number(
    renamed: Callable[[str], str], says: str, tmp_path: Path
) -> None:
    state = {renamed(name): tensor for name, tensor in state_of("llama", tied=False).items()}
    folder = folder_of(tmp_path / "m", "llama", state, tied=False)
    with pytest.raises(SourceError, match="incomplete") as refused:
        minitron.inspect(str(folder))
    assert says in str(refused.value)
    assert len(str(refused.value)) < 500


def test_one_tensor_under_two_names_or_in_two_shards_is_refused(tmp_path: Path) -> None:
    state = state_of("llama", tied=False)
    both = {**state, "norm.weight": state["model.norm.weight"] + 1}
    folder = folder_of(tmp_path / "names", "llama", both, tied=False)
    with pytest.raises(SourceError, match=r"hold model.norm.weight twice, as .* and as norm"):
        minitron.inspect(str(folder))
    folder = folder_of(tmp_path / "shards", "llama", state, tied=False)
    second = folder / "model-00002-of-00002.safetensors"
    save_file({**weights_of(folder)}, second, metadata={"format": "pt"})
    with pytest.raises(SourceError, match="both hold "):
        minitron.inspect(str(folder))
