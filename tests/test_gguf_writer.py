"""`convert --to gguf`: read by transformers and by minitron, with tokenizers; what is refused."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import minitron
from minitron.cli import main
from minitron.conversion import gguf_file, gguf_tensors
from minitron.conversion.gguf_file import read_gguf
from minitron.conversion.sentencepiece_model import DIFFICULT
from minitron.errors import MinitronError, SourceError, TargetError, TokenizerError
from minitron.files import tensor_stream
from minitron.files.file import LocalFile
from minitron.files.lazy_tensor import StoredTensor
from minitron.sources.loading import load_model, load_tokenizer
from minitron.sources.opening import open_source, zoo

from .gguf_files import byte_level_tokenizer, metadata_of, stored_tensors
from .tiny import tiny_folder, tiny_model

IDS = torch.arange(5, 25)[None]
SQUARE = {"hidden_size": 48}  # heads x head_dim, which some of llama.cpp's code asks for
WRITTEN: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-biased-tied": {},
    "mistral": {"sliding_window": None},
    "qwen2": SQUARE,
    "qwen3": {},
    "nemotron": SQUARE,
    "nemotron-biased": SQUARE,
    "smollm3": {"no_rope_layer_interval": 4, "use_sliding_window": False, "sliding_window": None},
    "granite": SQUARE,
}


def converted(tmp_path: Path, variant: str, dtype: str | None = None, **options: Any) -> Path:
    """A tiny model of a family in a GGUF file; its Hub folder stands beside it, in `model`."""
    folder = tiny_folder(tmp_path / "model", variant, **options)
    return minitron.convert(str(folder), str(tmp_path / "m.gguf"), to="gguf", dtype=dtype)


@pytest.mark.parametrize("variant", WRITTEN)
def test_the_file_is_the_one_that_the_converter_writes(tmp_path: Path, variant: str) -> None:
    path = converted(tmp_path, variant, **WRITTEN[variant])
    model = tiny_model(variant, **WRITTEN[variant])
    reader = gguf.GGUFReader(path)
    expected = stored_tensors(model)
    assert {tensor.name for tensor in reader.tensors} == expected.keys()
    for tensor in reader.tensors:
        assert torch.equal(torch.from_numpy(tensor.data.copy()), expected[tensor.name])
    for key, value in metadata_of(model).items():
        assert reader.get_field(key).contents() == pytest.approx(value), key


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", WRITTEN)
def test_written_and_read_again_every_bit_is_there(
    tmp_path: Path, variant: str, stored: torch.dtype
) -> None:
    tiny_model(variant, dtype=stored, **WRITTEN[variant]).save_pretrained(tmp_path / "model")
    path = minitron.convert(str(tmp_path / "model"), str(tmp_path / "m.gguf"), to="gguf")
    source, written = open_source(str(tmp_path / "model")), open_source(str(path))
    before = source.weights
    assert before.keys() == written.weights.keys()
    with torch.no_grad():
        expected = load_model(source)(IDS).logits
        torch.testing.assert_close(load_model(written)(IDS).logits, expected, rtol=0, atol=1e-5)
    for name, tensor in written.weights.items():
        # 1 is added to a norm of Nemotron in float32, and taken off again.
        is_changed = variant.startswith("nemotron") and "norm.weight" in name
        atol = 1e-6 if is_changed and stored == torch.float32 else 0
        torch.testing.assert_close(tensor.read(), before[name].read(), rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "atol"), [("f32", 1e-5), ("f16", 1e-2)])
@pytest.mark.parametrize("variant", ["llama", "mistral", "qwen2", "qwen3", "nemotron"])
def test_transformers_computes_the_logits_of_the_source(
    tmp_path: Path, variant: str, dtype: str, atol: float
) -> None:
    # It takes a head_dim of 128 for granted in Qwen3.
    own = {"head_dim": 128} if variant == "qwen3" else {}
    options = {**WRITTEN[variant], **SQUARE, **own}
    path = converted(tmp_path, variant, dtype, **options)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype="float32")
    with torch.no_grad():
        expected = tiny_model(variant, **options)(IDS).logits
        torch.testing.assert_close(theirs(IDS).logits, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "steps"), [("q8_0", 127), ("q4_0", 8)])
def test_blocks_are_as_near_as_their_steps(tmp_path: Path, dtype: str, steps: int) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16}
    path = converted(tmp_path, "llama", dtype, **sizes)
    kinds = read_gguf(LocalFile.at(path)).types
    assert kinds["blk.0.attn_q.weight"] == dtype.upper()
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["blk.0.ffn_down.weight"] == "F16"  # 66 columns are no whole blocks
    before, after = open_source(str(tmp_path / "model")).weights, open_source(str(path)).weights
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"):
        blocks = before[name].read().reshape(-1, 32)
        largest = blocks.abs().amax(dim=1, keepdim=True)
        away = (after[name].read().reshape(-1, 32) - blocks).abs()
        assert (away <= largest / steps * 1.05).all()


def test_no_matrix_is_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "vocab_size": 997}
    path = converted(tmp_path, "llama", "q8_0", **sizes)
    monkeypatch.setattr(tensor_stream, "PIECE_BYTES", 1 << 13)
    monkeypatch.setattr(gguf_file, "_AT_ONCE", 1 << 11)
    read: list[int] = []
    for kind in (gguf_file.BlockTensor, gguf_tensors.HeadRows, StoredTensor):
        whole = kind.read

        def recorded(self: Any, *rows: Any, whole: Any = whole) -> torch.Tensor:
            found: torch.Tensor = whole(self, *rows)
            read.append(found.nbytes)
            return found

        monkeypatch.setattr(kind, "read", recorded)
    minitron.convert(str(path), str(tmp_path / "again"))
    minitron.convert(str(tmp_path / "model"), str(tmp_path / "again.gguf"), to="gguf", dtype="q4_0")
    assert len(read) > 100
    assert max(read) <= 1 << 16  # the embedding has 1 << 18 bytes


def test_llama3_scaling_is_written_and_read(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    options = {"head_dim": 32, "max_position_embeddings": 256, "rope_parameters": scaling}
    path = converted(tmp_path, "llama", **options)
    again = minitron.convert(str(path), str(tmp_path / "again"))
    rotary = json.loads((again / "config.json").read_text())["rope_parameters"]
    assert rotary == {**scaling, **{key: pytest.approx(rotary[key]) for key in ("factor",)}}
    with torch.no_grad():
        expected = tiny_model("llama", **options)(IDS).logits
        found = load_model(open_source(str(path)))(IDS).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_sliding_window_is_the_longest_context(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        path = converted(tmp_path, "mistral", sliding_window=16)
    assert "context_length is 16, the window, and not 64" in caplog.text
    assert open_source(str(path)).config["max_position_embeddings"] == 16


def test_a_byte_level_tokenizer_keeps_its_ids_and_its_template(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "llama", vocab_size=403)
    tokenizer = byte_level_tokenizer(rows=400)
    tokenizer.save_pretrained(folder)
    path = minitron.convert(str(folder), str(tmp_path / "m.gguf"), to="gguf", dtype="f16")
    source = open_source(str(path))
    again = load_tokenizer(source)
    texts = [*DIFFICULT, "<|start|>It was <tool>1775</tool> <|end|>"]
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    for ids in tokenizer(texts)["input_ids"]:
        assert again.decode(ids) == tokenizer.decode(ids)
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert again.chat_template == tokenizer.chat_template
    metadata = read_gguf(LocalFile.at(path)).metadata
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    assert metadata["tokenizer.ggml.tokens"][-1] == "[PAD402]"
    assert metadata["tokenizer.ggml.add_bos_token"] is False


def with_zoo_tokenizer(folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(zoo()["tiny"] / name, folder / name)
    return folder


@pytest.mark.parametrize("has_model", [True, False])
def test_a_sentencepiece_tokenizer_keeps_its_ids(tmp_path: Path, has_model: bool) -> None:
    folder = with_zoo_tokenizer(tiny_folder(tmp_path / "model", "llama", vocab_size=4096))
    expected = load_tokenizer(open_source("tiny"))
    if not has_model:
        (folder / "tokenizer.model").unlink()
    path = minitron.convert(str(folder), str(tmp_path / "m.gguf"), to="gguf", dtype="f16")
    metadata = read_gguf(LocalFile.at(path)).metadata
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.add_space_prefix"] is False
    again = load_tokenizer(open_source(str(path)))
    # Only the model names the pieces that are the user's own symbols.
    texts = [text for text in DIFFICULT if has_model or "extra_id" not in text]
    assert again(texts)["input_ids"] == expected(texts)["input_ids"]
    assert again.special_tokens_map == expected.special_tokens_map


def test_a_bos_token_is_added_by_the_file_as_by_the_folder(tmp_path: Path) -> None:
    folder = with_zoo_tokenizer(tiny_folder(tmp_path / "model", "llama", vocab_size=4096))
    parts = json.loads((folder / "tokenizer.json").read_text())
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    parts["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, text],
        "pair": [bos, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [2], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    path = minitron.convert(str(folder), str(tmp_path / "m.gguf"), to="gguf", dtype="f16")
    again, before = (load_tokenizer(open_source(str(each))) for each in (path, folder))
    assert again("It was")["input_ids"] == before("It was")["input_ids"]
    assert again("It was")["input_ids"][0] == 2


def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "llama", vocab_size=400)
    split = byte_level_tokenizer().backend_tokenizer
    split.pre_tokenizer = pre_tokenizers.Split("-", "isolated")
    larger = byte_level_tokenizer().backend_tokenizer
    larger.add_tokens([f"<{number}>" for number in range(200)])
    unigram = Tokenizer(models.Unigram([("a", 0.0)], unk_id=0))
    for tokenizer, message in (
        (split, "for which no name of llama.cpp's is known here"),
        (larger, "tokens, but its embedding 400 rows"),
        (unigram, "its tokenizer is Unigram, not BPE"),
    ):
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
        with pytest.raises(TokenizerError, match=message):
            minitron.convert(str(folder), str(tmp_path / "m.gguf"), to="gguf")
        assert not list(tmp_path.glob("*.gguf*"))


@pytest.mark.parametrize(
    ("variant", "changed", "message"),
    [
        ("nemotron", {}, "llama.cpp cannot run this model: its code for nemotron fixes q_proj"),
        ("nemotron-tied", SQUARE, "has no tied output embedding"),
        ("qwen2", {}, "its code for qwen2 fixes q_proj"),
        ("qwen3-biased-tied", {}, "its code for qwen3 has no bias of o_proj"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type is 'dynamic': llama.cpp's converter stores default, linear, yarn, llama3",
        ),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused_before_anything_is_written(
    tmp_path: Path, variant: str, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        converted(tmp_path, variant, **changed)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_numbers_that_the_file_cannot_hold_leave_none(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 1e6
    model.save_pretrained(folder)
    with pytest.raises(
        TargetError, match=r"blk.1.ffn_up.weight holds values too large for float16"
    ):
        minitron.convert(str(folder), str(tmp_path / "m.gguf"), to="gguf", dtype="f16")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    model.save_pretrained(folder)
    with pytest.raises(SourceError, match=r"ffn_up.weight"):
        minitron.convert(str(folder), str(tmp_path / "m.gguf"), to="gguf", dtype="q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_options_of_gguf_belong_to_it(tmp_path: Path) -> None:
    for options, message in (
        ({"dtype": "q8_0"}, "--dtype q8_0 is for --to gguf, not hub"),
        ({"to": "gguf", "tp": 2}, "--tp is for --to trtllm, not gguf"),
    ):
        with pytest.raises(MinitronError, match=message):
            minitron.convert("tiny", str(tmp_path / "out"), **options)


def test_the_command_names_llama_cpp_next_and_the_record_travels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder(tmp_path / "model", "llama")
    first = minitron.convert(str(folder), str(tmp_path / "first"))
    out = str(tmp_path / "m.gguf")
    assert main(["convert", str(first), out, "--to", "gguf", "--dtype", "bf16"]) in (None, 0)
    assert f"llama-cli -m {out} -p 'It was the best of times,' -n 64" in capsys.readouterr().out
    metadata = read_gguf(LocalFile.at(Path(out))).metadata
    assert json.loads(metadata["minitron.record"])["command"] == "convert"
    assert metadata["general.name"] == "first"
    assert (metadata["general.file_type"], metadata["tokenizer.ggml.model"]) == (32, "none")
