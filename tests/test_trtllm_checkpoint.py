"""A TensorRT-LLM checkpoint is bit for bit what modelopt writes, and what a split by hand gives."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron.conversion.trtllm_checkpoint import write_trtllm
from minitron.errors import ArchitectureError, SourceError, TargetError
from minitron.files.file import LocalFile
from minitron.files.lazy_tensor import StoredTensor, Zeros
from minitron.files.safetensors_file import read_safetensors_header
from minitron.model.architecture import Architecture
from tests.tiny import FAMILIES, SIZES, edit_config, tiny_config, tiny_folder, weights_of

MODELOPT = Path(__file__).parent / "fixtures" / "trtllm" / "prunedhd"
HIDDEN, HEADS, HEAD_DIM = SIZES["hidden_size"], SIZES["num_attention_heads"], SIZES["head_dim"]
# 12 heads of 8 over 2 or 4 KV heads, and a feed-forward axis that 4 divides.
SPLITTABLE = {"num_attention_heads": 12, "intermediate_size": 68}


def open_folder(folder: Path) -> tuple[dict[str, Any], Mapping[str, StoredTensor]]:
    config = json.loads((folder / "config.json").read_text())
    return config, read_safetensors_header(LocalFile.at(folder / "model.safetensors"))


def write(
    source: Path, out: Path, *, tp: int = 1, pp: int = 1, dtype: torch.dtype = torch.bfloat16
) -> tuple[dict[str, Any], list[dict[str, torch.Tensor]]]:
    """The checkpoint's config and each rank's tensors, by the format's own library."""
    write_trtllm(out, *open_folder(source), tp=tp, pp=pp, dtype=dtype)
    ranks = [load_file(out / f"rank{rank}.safetensors") for rank in range(tp * pp)]
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        *(f"rank{rank}.safetensors" for rank in range(tp * pp)),
    }
    return json.loads((out / "config.json").read_text()), ranks


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


def by_hand(
    state: Mapping[str, torch.Tensor],
    *,
    layers: int,
    heads: int,
    kv_heads: int,
    tp: int,
    pp: int,
    dtype: torch.dtype,
    bias: bool = False,
) -> list[dict[str, torch.Tensor]]:
    """Every rank's tensors, as the three producers split them: expand KV heads, chunk, join."""
    vocabulary = state["model.embed_tokens.weight"]
    vocabulary = torch.cat([vocabulary, torch.zeros(-len(vocabulary) % tp, HIDDEN)])
    head = state.get("lm_head.weight", state["model.embed_tokens.weight"])
    head = torch.cat([head, torch.zeros(-len(head) % tp, HIDDEN)])
    ranks = []
    for stage in range(pp):
        for t in range(tp):
            rank: dict[str, torch.Tensor] = {}
            if stage == 0:
                rank["transformer.vocab_embedding.weight"] = vocabulary.chunk(tp)[t]
            if stage == pp - 1:
                rank["transformer.ln_f.weight"] = state["model.norm.weight"] + 1
                rank["transformer.ln_f.bias"] = state["model.norm.bias"]
                rank["lm_head.weight"] = head.chunk(tp)[t]
            for local in range(layers // pp):
                layer = f"model.layers.{stage * (layers // pp) + local}"
                name = f"transformer.layers.{local}"
                for ours, theirs in (("input", "input"), ("post", "post_attention")):
                    norm = f"{layer}.{theirs}_layernorm"
                    rank[f"{name}.{ours}_layernorm.weight"] = state[f"{norm}.weight"] + 1
                    rank[f"{name}.{ours}_layernorm.bias"] = state[f"{norm}.bias"]
                for kind in ("weight", "bias") if bias else ("weight",):
                    shares = []
                    for letter, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                        full = state[f"{layer}.self_attn.{letter}_proj.{kind}"]
                        per_head = full.view(count, HEAD_DIM, *full.shape[1:])
                        if count < tp:
                            per_head = per_head.repeat_interleave(tp // count, dim=0)
                        shares.append(per_head.chunk(tp)[t].flatten(0, 1))
                    rank[f"{name}.attention.qkv.{kind}"] = torch.cat(shares)
                    up = state[f"{layer}.mlp.up_proj.{kind}"]
                    rank[f"{name}.mlp.fc.{kind}"] = up.chunk(tp)[t]
                    o, down = (
                        state[f"{layer}.{full}.{kind}"]
                        for full in ("self_attn.o_proj", "mlp.down_proj")
                    )
                    whole = kind == "bias"
                    rank[f"{name}.attention.dense.{kind}"] = o if whole else o.chunk(tp, dim=1)[t]
                    rank[f"{name}.mlp.proj.{kind}"] = down if whole else down.chunk(tp, dim=1)[t]
            ranks.append({key: tensor.to(dtype) for key, tensor in rank.items()})
    return ranks


def test_what_modelopt_writes_is_written_bit_for_bit(tmp_path: Path) -> None:
    expected = MODELOPT / "tp1pp1_bfloat16"
    config, ranks = write(MODELOPT / "hf", tmp_path / "out")

    assert_same(ranks[0], load_file(expected / "rank0.safetensors"))
    theirs = json.loads((expected / "config.json").read_text())
    assert list(config) == list(theirs)
    different = {key: value for key, value in config.items() if value != theirs[key]}
    assert different == {
        "producer": {"name": "minitron", "version": version("minitron")},
        "logits_dtype": "float32",
        "hidden_act": "squared-relu",
    }


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 12])
@pytest.mark.parametrize("pp", [1, 2])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_every_rank_holds_what_a_split_by_hand_gives(
    tmp_path: Path, tp: int, pp: int, kv_heads: int
) -> None:
    source = tiny_folder(tmp_path / "source", **SPLITTABLE, num_key_value_heads=kv_heads)
    config, ranks = write(source, tmp_path / "out", tp=tp, pp=pp)

    state = weights_of(source)
    expected = by_hand(
        state, layers=4, heads=12, kv_heads=kv_heads, tp=tp, pp=pp, dtype=torch.bfloat16
    )
    assert len(ranks) == len(expected) == tp * pp
    for found, wanted in zip(ranks, expected, strict=True):
        assert_same(found, wanted)
    assert config["mapping"] == {"world_size": tp * pp, "tp_size": tp, "pp_size": pp}
    assert (config["num_key_value_heads"], config["head_size"]) == (kv_heads, HEAD_DIM)
    assert config["bias"] is False


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_norms_one_is_added_before_the_cast(tmp_path: Path, dtype: torch.dtype) -> None:
    source = tiny_folder(tmp_path / "source", dtype=torch.float32)
    _, ranks = write(source, tmp_path / "out", dtype=dtype)

    weight = weights_of(source)["model.layers.1.input_layernorm.weight"]
    found = ranks[0]["transformer.layers.1.input_layernorm.weight"]
    assert torch.equal(found, (weight + 1).to(dtype))
    if dtype != torch.float32:
        assert not torch.equal(found, weight.to(dtype) + 1)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_vocabulary_that_does_not_divide_is_padded_with_zeros(tmp_path: Path, tp: int) -> None:
    source = tiny_folder(tmp_path / "source", **SPLITTABLE, vocab_size=101)
    config, ranks = write(source, tmp_path / "out", tp=tp, dtype=torch.float32)

    state = weights_of(source)
    for name, origin in (
        ("lm_head.weight", "lm_head.weight"),
        ("transformer.vocab_embedding.weight", "model.embed_tokens.weight"),
    ):
        joined = torch.cat([rank[name] for rank in ranks])
        assert joined.shape[0] == {1: 101, 2: 102, 4: 104}[tp]
        assert torch.equal(joined[:101], state[origin])
        assert not joined[101:].any()
    assert config["vocab_size"] == 101
    assert config["use_parallel_embedding"] is True


def test_a_tied_head_is_written_to_the_last_stage_as_its_own(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", "nemotron-tied")
    config, (first, last) = write(source, tmp_path / "out", pp=2)

    embedding = weights_of(source)["model.embed_tokens.weight"].bfloat16()
    assert torch.equal(first["transformer.vocab_embedding.weight"], embedding)
    assert torch.equal(last["lm_head.weight"], embedding)
    assert "lm_head.weight" not in first
    assert "transformer.vocab_embedding.weight" not in last
    assert config["share_embedding_table"] is False


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_biases_are_split_like_their_weights_rows(tmp_path: Path, tp: int) -> None:
    source = tiny_folder(tmp_path / "source", "nemotron-biased", **SPLITTABLE)
    config, ranks = write(source, tmp_path / "out", tp=tp, pp=2)

    state = weights_of(source)
    expected = by_hand(
        state, layers=4, heads=12, kv_heads=2, tp=tp, pp=2, dtype=torch.bfloat16, bias=True
    )
    for found, wanted in zip(ranks, expected, strict=True):
        assert_same(found, wanted)
    assert config["bias"] is True


@pytest.mark.parametrize("flag", ["attention_bias", "mlp_bias"])
def test_where_only_some_layers_have_a_bias_the_others_get_zeros(tmp_path: Path, flag: str) -> None:
    # The engine has one flag for all linear layers and asks for every bias.
    source = tiny_folder(tmp_path / "source", **SPLITTABLE, **{flag: True})
    config, ranks = write(source, tmp_path / "out", tp=2, dtype=torch.float32)

    state = dict(weights_of(source))
    for name in list(state):
        if name.endswith("proj.weight"):
            state.setdefault(name.replace("weight", "bias"), torch.zeros(state[name].shape[0]))
    expected = by_hand(
        state, layers=4, heads=12, kv_heads=2, tp=2, pp=1, dtype=torch.float32, bias=True
    )
    for found, wanted in zip(ranks, expected, strict=True):
        assert_same(found, wanted)
    assert config["bias"] is True


def test_the_config_says_what_the_source_says(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", norm_eps=3e-6, max_position_embeddings=72)
    rotary = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}
    edit_config(source, remove=("rope_theta", "partial_rotary_factor"), rope_parameters=rotary)
    config, _ = write(source, tmp_path / "out", dtype=torch.float16)

    assert config == {
        "producer": {"name": "minitron", "version": version("minitron")},
        "architecture": "NemotronForCausalLM",
        "dtype": "float16",
        "logits_dtype": "float32",
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "hidden_size": 42,
        "norm_epsilon": 3e-6,
        "vocab_size": 101,
        "max_position_embeddings": 72,
        "hidden_act": "squared-relu",
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
        "head_size": 8,
        "intermediate_size": 66,
        "position_embedding_type": "rope_gpt_neox",
        "share_embedding_table": False,
        "residual_mlp": False,
        "bias": False,
        "rotary_pct": 0.25,
        "rank": 0,
        "decoder": "gpt",
        "rmsnorm": False,
        "lm_head_bias": False,
        "rotary_base": 500.0,
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    }


def test_an_old_config_means_the_same_as_todays(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    today, ranks = write(source, tmp_path / "today")
    edit_config(
        source,
        remove=("rope_parameters", "partial_rotary_factor", "head_dim"),
        kv_channels=HEAD_DIM,
        rope_percent=0.5,
        rope_theta=10000.0,
    )
    old, old_ranks = write(source, tmp_path / "old")

    assert old == today
    assert_same(old_ranks[0], ranks[0])


def test_linear_rotary_scaling_is_kept(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    edit_config(source, remove=("rope_parameters",), rope_scaling={"type": "linear", "factor": 4})
    config, _ = write(source, tmp_path / "out")
    assert config["rotary_scaling"] == {"type": "linear", "factor": 4.0}


def test_progress_counts_every_byte_of_every_rank(tmp_path: Path) -> None:
    source, counted = tiny_folder(tmp_path / "source"), list[int]()
    write_trtllm(
        tmp_path / "out",
        *open_folder(source),
        tp=2,
        pp=2,
        dtype=torch.bfloat16,
        progress=counted.append,
    )
    ranks = [load_file(path) for path in (tmp_path / "out").glob("rank*")]
    assert len(ranks) == 4
    assert sum(counted) == sum(tensor.nbytes for rank in ranks for tensor in rank.values())


def test_pieces_of_a_large_tensor_join_to_the_whole(tmp_path: Path) -> None:
    # 4096 x 1024 in bfloat16 is 8 MB: several pieces by rows and by columns.
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 1}
    source = tiny_folder(tmp_path / "source", dtype=torch.bfloat16, **sizes)
    state = weights_of(source)
    _, ranks = write(source, tmp_path / "out", tp=2)

    up, down = (state[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("up", "down"))
    fc, proj = (
        [rank[f"transformer.layers.0.mlp.{name}.weight"] for rank in ranks]
        for name in ("fc", "proj")
    )
    assert torch.equal(torch.cat(fc), up)
    assert torch.equal(torch.cat(proj, dim=1), down)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "heads": ({}, {"tp": 4}, "tp is 4: choose one that divides num_attention_heads, 6"),
    "ffn": (
        {"intermediate_size": 67},
        {"tp": 2},
        "tp is 2: choose one that divides intermediate_size, 67",
    ),
    "KV heads": (
        {"num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 66},
        {"tp": 6},
        "tp is 6: choose a divisor or a multiple of num_key_value_heads, 4",
    ),
    "layers": ({}, {"pp": 3}, "pp is 3: choose one that divides num_hidden_layers, 4"),
    "no rank": ({}, {"tp": 0}, "tp is 0: it must be at least 1"),
    "no stage": ({}, {"pp": -1}, "pp is -1: it must be at least 1"),
    "dtype": (
        {},
        {"dtype": torch.float64},
        "dtype is float64: TensorRT-LLM's GPT takes float16, bfloat16, float32; choose one of them",
    ),
    "activation": (
        {"hidden_act": "gelu"},
        {},
        "hidden_act is 'gelu': only Nemotron's relu2 can be written",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_format_cannot_hold_is_refused_with_nothing_written(
    tmp_path: Path, case: str
) -> None:
    changed, options, message = REFUSED[case]
    source = tiny_folder(tmp_path / "source", **changed)
    with pytest.raises(TargetError) as refused:
        write(source, tmp_path / "out", **options)
    assert str(refused.value) == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "nemotron"])
def test_another_family_is_sent_to_its_own_converter(tmp_path: Path, family: str) -> None:
    source = tiny_folder(tmp_path / "source", family)
    with pytest.raises(TargetError, match=f"model_type is {family}.*TensorRT-LLM's .*example"):
        write(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "llama3"])
def test_another_rotary_scaling_is_refused(tmp_path: Path, kind: str) -> None:
    source = tiny_folder(tmp_path / "source")
    scaling = {"rope_type": kind, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    edit_config(source, remove=("rope_parameters",), rope_scaling=scaling)
    with pytest.raises(TargetError, match=f"rope_type is '{kind}'"):
        write(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    edit_config(source, rope_theta=7.0)
    with pytest.raises(ArchitectureError, match=r"rope_theta 7\.0"):
        write(source, tmp_path / "out")


def test_a_missing_or_misshapen_tensor_is_refused_with_nothing_written(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    config, tensors = open_folder(source)
    name = "model.layers.3.mlp.down_proj.weight"
    missing = {key: tensor for key, tensor in tensors.items() if key != name}
    misshapen = {**tensors, name: tensors["model.layers.3.mlp.up_proj.weight"]}
    for broken, message in ((missing, "not there"), (misshapen, r"\[66, 42\].*\[42, 66\]")):
        with pytest.raises(SourceError, match=f"{name}.*{message}"):
            write_trtllm(tmp_path / "out", config, broken, tp=1, pp=1, dtype=torch.bfloat16)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.2.input_layernorm.weight"])
def test_values_that_float16_cannot_hold_are_refused(tmp_path: Path, name: str) -> None:
    source = tiny_folder(tmp_path / "source")
    state = dict(weights_of(source))
    state[name].view(-1)[5] = 70000.0
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TargetError, match=f"{name} holds values that are not finite in float16"):
        write(source, tmp_path / "float16", dtype=torch.float16)
    write(source, tmp_path / "bfloat16", dtype=torch.bfloat16)


def test_no_more_than_a_few_megabytes_of_a_tensor_are_read_at_once(tmp_path: Path) -> None:
    asked: list[int] = []

    class Endless(Zeros):
        def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
            rows = super().read(start, stop)
            asked.append(rows.nbytes)
            return rows

    config = tiny_config(vocab_size=40_000, hidden_size=512, intermediate_size=30_000).to_dict()
    shapes = Architecture.from_config(config).shapes()
    tensors = {name: Endless(torch.bfloat16, shape) for name, shape in shapes.items()}
    write_trtllm(tmp_path / "out", config, tensors, tp=2, pp=1, dtype=torch.bfloat16)
    assert max(tensor.nbytes for tensor in tensors.values()) > 40_000_000
    assert max(asked) < 5_000_000
