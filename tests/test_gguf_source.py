"""A GGUF file as a source: against the model it was made of, and against transformers' reader."""

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import minitron
from minitron.conversion.gguf_file import read_gguf
from minitron.errors import MinitronError, MissingExtraError, SourceError, TokenizerError
from minitron.files.file import LocalFile
from minitron.model.families import FAMILIES
from minitron.sources.loading import load_model, load_tokenizer
from minitron.sources.opening import open_source

from .gguf_files import metadata_of, model_file, stored_tensors, write_file
from .tiny import VARIANTS, tiny_model

IDS = torch.arange(5, 25)[None]
READ = [
    variant
    for variant, (family, _) in VARIANTS.items()
    if FAMILIES[family].gguf and variant not in ("nemotron-tied", "qwen2-sliding", "smollm3")
]
# What transformers reads: it takes a head_dim of 128 for granted in Qwen3.
READ_BY_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 48},
    "qwen2": {"hidden_size": 48},
    "qwen3": {"hidden_size": 64, "head_dim": 128},
    "nemotron": {"hidden_size": 48},
}


@pytest.mark.parametrize("variant", READ)
def test_tensors_and_logits_are_those_of_the_model(tmp_path: Path, variant: str) -> None:
    model = tiny_model(variant)
    source = open_source(str(model_file(tmp_path / "m.gguf", model)))
    state = model.state_dict()
    for name, tensor in source.weights.items():
        # 1 was added to a norm of Nemotron in float32, and taken off again.
        atol = 1e-6 if variant.startswith("nemotron") and "norm.weight" in name else 0
        torch.testing.assert_close(tensor.read(), state[name], rtol=0, atol=atol)
        torch.testing.assert_close(tensor.read(1, 3), state[name][1:3], rtol=0, atol=atol)
    with torch.no_grad():
        torch.testing.assert_close(load_model(source)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("kind", ["F32", "Q4_1"])
@pytest.mark.parametrize("variant", READ_BY_TRANSFORMERS)
def test_transformers_reads_the_same_numbers(tmp_path: Path, variant: str, kind: str) -> None:
    sizes = {"intermediate_size": 96, **READ_BY_TRANSFORMERS[variant]}
    if kind.startswith("Q"):
        sizes |= {"hidden_size": 64, "head_dim": sizes.get("head_dim", 16)}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = tiny_model(variant, **sizes)
    path = model_file(tmp_path / "m.gguf", model, kind, vocab_size=101)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype="float32")
    source = open_source(str(path))
    state = theirs.state_dict()
    for name, tensor in source.weights.items():
        assert torch.equal(tensor.read().float(), state[name].to(tensor.dtype).float()), name


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ4_XS"])
def test_rows_of_blocks_are_dequantised_as_they_are_read(tmp_path: Path, kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    block, nbytes = gguf.GGML_QUANT_SIZES[number]
    data = np.random.default_rng(0).integers(0, 60, (7, 512 // block * nbytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("w", data, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_gguf(LocalFile.at(tmp_path / "m.gguf")).tensors["w"]
    assert (tensor.shape, tensor.dtype) == ((7, 512), torch.float32)
    whole = torch.from_numpy(gguf.quants.dequantize(data, number))
    torch.testing.assert_close(tensor.read(2, 5), whole[2:5], rtol=0, atol=0, equal_nan=True)


def test_a_half_file_is_all_of_its_own_dtype(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.gguf", tiny_model("llama"), "BF16")
    source = open_source(str(path))
    assert {tensor.dtype for tensor in source.weights.values()} == {torch.bfloat16}
    assert minitron.inspect(str(path)).to_json()["layout"] == "BF16, F32"


def test_llama3_scaling_is_found_in_its_tensor(tmp_path: Path) -> None:
    scaling = {
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = tiny_model(
        "llama",
        head_dim=32,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "llama3", **scaling},
    )
    inverse = model.model.rotary_emb.inv_freq
    plain = 10000.0 ** -(torch.arange(0, 32, 2) / 32)
    tensors = {**stored_tensors(model), "rope_freqs.weight": plain / inverse}
    source = open_source(str(write_file(tmp_path / "m.gguf", metadata_of(model), tensors)))
    found = source.config["rope_parameters"]
    assert found.pop("rope_type") == "llama3"
    assert found == pytest.approx(scaling, rel=1e-3)
    found["rope_type"] = "llama3"
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(source)(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5
        )
    tensors["rope_freqs.weight"] = torch.linspace(1, 2, 16)
    changed = write_file(tmp_path / "n.gguf", metadata_of(model), tensors)
    with pytest.raises(SourceError, match="that is not llama3's scaling"):
        open_source(str(changed))


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({"rope__scaling__type": "none"}, {"rope_type": "default"}),
        (
            {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        ({"rope__scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 16,
                "rope__scaling__yarn_beta_fast": 30.0,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 30.0,
            },
        ),
    ],
)
def test_rotary_scaling_is_read_from_its_keys(
    tmp_path: Path, keys: dict[str, Any], scaling: dict[str, Any]
) -> None:
    source = open_source(str(model_file(tmp_path / "m.gguf", tiny_model("llama"), **keys)))
    assert source.config["rope_parameters"] == {"rope_theta": 10000.0, **scaling}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attention__scale": 0.5}, "attention.scale 0.5, with which nothing is computed"),
        ({"expert_count": 8}, "expert_count 8"),
        ({"rope__scaling__type": "longrope"}, "rope.scaling.type 'longrope'"),
        ({"rope__dimension_count": 4}, "rope.dimension_count 4, but a head_dim of 8"),
        ({"attention__value_length": 10}, "a head_dim of 8"),
        ({"feed_forward_length": [66, 66, 60, 66]}, "one whole number above 0"),
        ({"block_count": 9999}, "block_count 9999, more than tensors"),
        ({"block_count": 5}, "has no tensor model.layers.4"),
        ({"attention__head_count": 0}, "attention.head_count 0"),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, "it must be a number and finite"),
        ({"embedding_length": 1 << 31}, "no model has more than"),
    ],
)
def test_what_no_family_computes_is_refused_by_its_key(
    tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    path = model_file(tmp_path / "m.gguf", tiny_model("llama"), **keys)
    with pytest.raises(MinitronError, match=message):
        open_source(str(path)).check_weights()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general.architecture": "gptj"}, "of llama.cpp's architecture 'gptj'; known here: nemo"),
        ({"split.count": 3}, "is one of 3 parts: join them with llama.cpp's llama-gguf-split"),
        ({"general.type": "adapter"}, "holds a GGUF 'adapter': name a model"),
    ],
)
def test_a_file_that_is_no_whole_model_is_refused(
    tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    model = tiny_model("llama")
    path = write_file(tmp_path / "m.gguf", {**metadata_of(model), **keys}, stored_tensors(model))
    with pytest.raises(SourceError, match=message):
        open_source(str(path))


def test_a_tensor_that_the_family_lacks_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    tensors = {**stored_tensors(model), "blk.0.attn_sinks.weight": torch.ones(6)}
    path = write_file(tmp_path / "m.gguf", metadata_of(model), tensors)
    with pytest.raises(SourceError, match=r"blk.0.attn_sinks.weight that no llama has"):
        open_source(str(path)).check_weights()


def test_sizes_that_llama_does_not_take_are_a_mistrals(tmp_path: Path) -> None:
    model = tiny_model("mistral", hidden_size=40, sliding_window=None)  # 40 / 6 heads
    source = open_source(str(model_file(tmp_path / "m.gguf", model)))
    assert source.config["model_type"] == "mistral"
    with torch.no_grad():
        torch.testing.assert_close(load_model(source)(IDS).logits, model(IDS).logits)


def test_a_model_is_pruned_and_converted_from_its_file(tmp_path: Path) -> None:
    model = tiny_model("llama")
    path = write_file(
        tmp_path / "m.gguf",
        {**metadata_of(model), "general.license": "apache-2.0", "general.languages": ["en"]},
        stored_tensors(model),
    )
    with pytest.raises(SourceError, match=f"holds GGUF files: name one of them, as {path}"):
        open_source(str(tmp_path))
    ollama = path.rename(tmp_path / "sha256-0123")  # known by its first bytes
    with pytest.raises(MinitronError, match="no tokenizer"):
        load_tokenizer(open_source(str(ollama)))
    out = minitron.convert(str(ollama), str(tmp_path / "hub"))
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits)
    record = json.loads((out / "minitron.json").read_text())
    assert record["source"]["metadata"] == {"language": ["en"], "license": "apache-2.0"}
    pruned = str(tmp_path / "pruned")
    minitron.prune(str(ollama), pruned, num_hidden_layers=3, corpus="random")
    assert minitron.inspect(pruned).num_hidden_layers == 3


HEADER = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
KEY = struct.pack("<Q", 1) + b"k"
ONE = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"w"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no GGUF file"),
        (b"GGUX" + bytes(20), "is no GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is GGUF version 1; 2 and 3 can be read"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "claims 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "1152921504606846976 keys"),
        (b"GGUF\x03", "truncated"),
        (HEADER + struct.pack("<Q", 1 << 62), "its header claims"),
        (HEADER + struct.pack("<Q", 1 << 20), "truncated"),
        (HEADER + KEY + struct.pack("<I", 13), "a value of type 13"),
        (HEADER + KEY + struct.pack("<IIQ", 9, 8, 1 << 60), "its header claims"),
        (HEADER + KEY + struct.pack("<IIQ", 9, 4, 1 << 40), "its header claims"),
        (HEADER + KEY + struct.pack("<IIQ", 9, 9, 1), "an array of values of type 9"),
        (HEADER + KEY + struct.pack("<IQ", 8, 1) + b"\xff", "is no UTF-8"),
        (ONE + struct.pack("<IQIQ", 9, 4, 0, 0), "w has 9 axes"),
        (ONE + struct.pack("<IQIQ", 1, 4, 77, 0), "of ggml's type 77"),
        (ONE + struct.pack("<IQIQ", 1, 1 << 60, 0, 0), "truncated"),
        (ONE + struct.pack("<IQIQ", 1, 4, 0, 1 << 40), "truncated"),
        (ONE + struct.pack("<IQIQ", 1, 4, 0, 7), "w begins at 7, not aligned"),
        (ONE + struct.pack("<IQQIQ", 2, 33, 2, 8, 0), "no whole blocks of Q8_0"),
        (ONE + struct.pack("<IQQIQ", 2, 256, 1 << 50, 12, 0), "truncated"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        open_source(str(path))


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = model_file(tmp_path / "m.gguf", tiny_model("llama")).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, 2000, 97), len(whole) - 33]:
        cut.write_bytes(whole[:size])
        with pytest.raises(SourceError):
            open_source(str(cut)).check_weights()


def test_a_rule_or_kind_of_tokenizer_that_is_not_known_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "viking",
        "tokenizer.ggml.tokens": [f"t{index}" for index in range(101)],
    }
    for changed, message in (
        ({}, "splits texts by the rule 'viking', which is not known here"),
        ({"tokenizer.ggml.model": "rwkv"}, "has the tokenizer 'rwkv': gpt2 and llama"),
        ({"tokenizer.ggml.tokens": ["a"] * 101}, "a token is there twice"),
        ({"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.merges": ["x y z"]}, "cannot be read"),
        ({"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.bos_token_id": 101}, "no token"),
    ):
        path = tmp_path / "m.gguf"
        write_file(path, {**metadata_of(model), **keys, **changed}, stored_tensors(model))
        with pytest.raises(TokenizerError, match=message):
            load_tokenizer(open_source(str(path)))


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model_file(tmp_path / "m.gguf", tiny_model("llama"))
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'minitron\[gguf\]'"):
        open_source(str(path))
