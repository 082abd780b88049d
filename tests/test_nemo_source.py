"""NeMo checkpoints as sources and as targets: real ones against megatron-core's own logits."""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import minitron
from minitron.cli import main
from minitron.errors import ArchitectureError, MinitronError, SourceError, TargetError
from minitron.sources.loading import load_model, load_tokenizer
from minitron.sources.opening import open_source
from modeling_nemotron import CHAT_TEMPLATE

from .nemo_files import megatron_tensors, nemo_settings, write_nemo_file
from .tiny import tiny_folder

FIXTURES = Path(__file__).parent / "fixtures" / "nemo"
REAL = sorted(path.name for path in FIXTURES.iterdir())
TOKENIZER = (
    FIXTURES / "nemo2_mc0123_tp2_bf16" / "model" / "context" / "nemotron_tiny.model"
).read_bytes()
PIECES = 300  # in TOKENIZER
ROWS = 304  # of the embedding: some pad the vocabulary
MODEL = "29e0db5f7dd14bcf9f32727ff482502b_nemotron_tiny.model"
NAMED = {"library": "sentencepiece", "model": f"nemo:{MODEL}"}


def real(name: str) -> Path:
    """The checkpoint of a fixture, a file or a folder."""
    file = FIXTURES / name / "model.nemo"
    return file if file.exists() else FIXTURES / name / "model"


def write(path: Path, *, settings: dict[str, Any] | None = None, **options: Any) -> Path:
    """A checkpoint that carries the tokenizer; `settings` are changes of model_config.yaml."""
    described = nemo_settings(**{"tokenizer": NAMED, **(settings or {})})
    tensors = options.pop("tensors", None) or megatron_tensors(described, vocab_size=ROWS)
    files = {MODEL: TOKENIZER, **options.pop("files", {})}
    return write_nemo_file(path, tensors, described, files=files, **options)


def by_hand(settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The Hub's tensors of the same weights, made in memory by other means."""
    megatron = megatron_tensors(settings, vocab_size=ROWS)
    groups = settings["num_query_groups"] or settings["num_attention_heads"]
    each, size = settings["num_attention_heads"] // groups, settings["kv_channels"]
    one = 0 if settings["normalization"] == "layernorm1p" else 1
    hub = {"model.embed_tokens.weight": megatron["embedding.word_embeddings.weight"][:PIECES]}
    for end in ("weight", "bias"):
        less = one if end == "weight" else 0
        hub[f"model.norm.{end}"] = megatron[f"decoder.final_layernorm.{end}"] - less
        for layer in range(settings["num_layers"]):
            theirs, ours = f"decoder.layers.{layer}", f"model.layers.{layer}"
            for norm, name in (
                ("input_layernorm", "input_layernorm"),
                ("pre_mlp_layernorm", "post_attention_layernorm"),
            ):
                hub[f"{ours}.{name}.{end}"] = megatron[f"{theirs}.{norm}.{end}"] - less
            for module, name in (
                ("self_attention.linear_proj", "self_attn.o_proj"),
                ("mlp.linear_fc1", "mlp.up_proj"),
                ("mlp.linear_fc2", "mlp.down_proj"),
            ):
                if f"{theirs}.{module}.{end}" in megatron:
                    hub[f"{ours}.{name}.{end}"] = megatron[f"{theirs}.{module}.{end}"]
            fused = megatron.get(f"{theirs}.self_attention.linear_qkv.{end}")
            if fused is not None:
                parts: dict[str, list[torch.Tensor]] = {"q": [], "k": [], "v": []}
                for group in fused.split((each + 2) * size):
                    for letter, part in zip(
                        "qkv", group.split((each * size, size, size)), strict=True
                    ):
                        parts[letter].append(part)
                for letter, pieces in parts.items():
                    hub[f"{ours}.self_attn.{letter}_proj.{end}"] = torch.cat(pieces)
    if not settings["share_embeddings_and_output_weights"]:
        hub["lm_head.weight"] = megatron["output_layer.weight"][:PIECES]
    return hub


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", REAL)
def test_a_real_checkpoint_gives_megatrons_logits(name: str, tmp_path: Path) -> None:
    out = minitron.convert(str(real(name)), str(tmp_path / "out"), keep_vocab_padding=True)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert type(model).__module__.startswith("transformers.")
    ids = torch.from_numpy(np.load(FIXTURES / name / "input_ids.npy"))
    with torch.no_grad():
        logits = model(ids).logits.numpy()
    assert np.abs(logits - np.load(FIXTURES / name / "expected_logits.npy")).max() <= 1e-5


@pytest.mark.parametrize("name", REAL)
def test_padding_is_cut_to_the_tokenizer_and_the_rest_is_the_same(
    name: str, tmp_path: Path
) -> None:
    whole = minitron.convert(str(real(name)), str(tmp_path / "whole"), keep_vocab_padding=True)
    cut = minitron.convert(str(real(name)), str(tmp_path / "cut"))
    assert json.loads((cut / "config.json").read_text())["vocab_size"] == PIECES
    assert len(AutoTokenizer.from_pretrained(cut)) == PIECES
    padded = weights(whole)
    for tensor_name, tensor in weights(cut).items():
        assert torch.equal(tensor, padded[tensor_name][: len(tensor)]), tensor_name


CHANGES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "every head its own group": {"num_query_groups": None},
    "biased": {"bias": True, "bias_activation_fusion": False},
    "tied": {"share_embeddings_and_output_weights": True},
    "plain layernorm": {"normalization": "layernorm"},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "zarr": {"layout": "zarr"},
    "zarr TP 2": {"layout": "zarr", "tensor_parallel": 2},
    "torch_dist": {"layout": "torch_dist"},
    "torch_dist per layer TP 2": {"layout": "torch_dist per layer", "tensor_parallel": 2},
    "state dict": {"layout": "state_dict"},
    "state dict TP 2": {"layout": "state_dict", "tensor_parallel": 2},
    "state dict TP 2 PP 2": {
        "layout": "state_dict",
        "tensor_parallel": 2,
        "pipeline_parallel": 2,
        "spelling": "local",
    },
    "interleaved pipeline": {
        "layout": "state_dict",
        "pipeline_parallel": 2,
        "virtual_pipeline": 2,
    },
    "legacy names in a wrapper": {
        "layout": "state_dict",
        "spelling": "legacy",
        "wrapper": "state_dict",
    },
    "tar.gz": {"layout": "zarr", "pack": "tar.gz"},
    "folder": {"layout": "torch_dist", "pack": "folder"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("change", CHANGES)
def test_every_layout_of_every_kind_of_model_is_read(
    layout: str, change: str, tmp_path: Path
) -> None:
    settings = nemo_settings(**CHANGES[change])
    source = open_source(
        str(write(tmp_path / "m.nemo", settings=CHANGES[change], **LAYOUTS[layout]))
    )
    wanted = by_hand(settings)
    assert source.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(source.tensors[name].read(), tensor), name
    model = load_model(source)
    theirs = AutoModelForCausalLM.from_config(model.config)  # transformers' own class
    theirs.load_state_dict(
        {
            **wanted,
            **(
                {}
                if "lm_head.weight" in wanted
                else {"lm_head.weight": wanted["model.embed_tokens.weight"]}
            ),
        }
    )
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, theirs.eval()(ids).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("to", "dist_format"), [("nemo", "torch_dist"), ("nemo", "zarr"), ("nemo2", "torch_dist")]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", ["grouped", "biased", "tied"])
def test_there_and_back_gives_the_same_bytes(
    to: str, dist_format: str, dtype: str, change: str, tmp_path: Path
) -> None:
    nemo = write(tmp_path / "m.nemo", settings=CHANGES[change])
    hub = minitron.convert(str(nemo), str(tmp_path / "hub"), dtype=dtype)
    options = {"dist_format": dist_format} if to == "nemo" else {}
    back = minitron.convert(str(hub), str(tmp_path / "back"), to=to, **options)
    again = minitron.convert(str(back), str(tmp_path / "again"))
    for name in ("model.safetensors", "tokenizer.model", "tokenizer.json", "config.json"):
        assert (hub / name).read_bytes() == (again / name).read_bytes(), name


def test_the_last_stages_copy_of_a_tied_embedding_is_left_out(tmp_path: Path) -> None:
    tied = CHANGES["tied"]
    tensors = megatron_tensors(nemo_settings(**tied), vocab_size=ROWS)
    tensors["output_layer.weight"] = tensors["embedding.word_embeddings.weight"]
    stages = {"layout": "state_dict", "tensors": tensors, "settings": tied}
    path = write(tmp_path / "m.nemo", pipeline_parallel=2, **stages)
    assert open_source(str(path)).tensors.keys() == by_hand(nemo_settings(**tied)).keys()
    with pytest.raises(SourceError, match="output_layer"):
        open_source(str(write(tmp_path / "one.nemo", **stages))).tensors.keys()


def test_vocabulary_padding_survives_there_and_back(tmp_path: Path) -> None:
    nemo = write(tmp_path / "m.nemo")
    hub = minitron.convert(str(nemo), str(tmp_path / "hub"), keep_vocab_padding=True)
    back = minitron.convert(str(hub), str(tmp_path / "back.nemo"), to="nemo")
    again = minitron.convert(str(back), str(tmp_path / "again"), keep_vocab_padding=True)
    assert weights(again)["lm_head.weight"].shape[0] == ROWS
    assert (hub / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_the_original_readmes_tensorrt_llm_section_needs_no_container(tmp_path: Path) -> None:
    source = str(real("zarr_mc080_tp2_bf16"))
    straight = minitron.convert(
        source, str(tmp_path / "straight"), to="trtllm", tp=2, dtype="bfloat16"
    )
    hub = minitron.convert(source, str(tmp_path / "hub"))
    through = minitron.convert(
        str(hub), str(tmp_path / "through"), to="trtllm", tp=2, dtype="bfloat16"
    )
    for name in ("config.json", "rank0.safetensors", "rank1.safetensors"):
        assert (straight / name).read_bytes() == (through / name).read_bytes(), name
    config = json.loads((straight / "config.json").read_text())
    assert (config["hidden_act"], config["logits_dtype"]) == ("squared-relu", "float32")


def test_a_nemo_is_inspected_pruned_evaluated_and_generates(tmp_path: Path) -> None:
    source = str(real("tdist_mc0123_tp1_bf16"))
    inspection = minitron.inspect(source)
    assert (inspection.format, inspection.layout) == ("nemo", "torch_dist in a tar")
    assert (inspection.dtype, inspection.vocab_size) == ("bfloat16", PIECES)
    hub = str(minitron.convert(source, str(tmp_path / "hub")))
    assert inspection.parameters == sum(t.numel() for t in weights(tmp_path / "hub").values())
    np.save(tmp_path / "ids.npy", np.arange(4, 52, dtype=np.int32).reshape(2, 24))
    ids = str(tmp_path / "ids.npy")
    losses = [minitron.evaluate(src, corpus=ids, seq_len=23).loss for src in (source, hub)]
    assert losses[0] == pytest.approx(losses[1])
    assert minitron.generate(source, "Hello", max_new_tokens=3)
    small = minitron.prune(source, str(tmp_path / "small"), hidden_size=32, corpus=ids, seq_len=24)
    assert small.config["hidden_size"] == 32
    AutoModelForCausalLM.from_pretrained(tmp_path / "small")


def test_an_instruct_model_brings_its_chat(tmp_path: Path) -> None:
    path = write(tmp_path / "nemotron-mini-4b-instruct.nemo")
    out = minitron.convert(str(path), str(tmp_path / "out"))
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [3, 5]
    base = minitron.convert(str(write(tmp_path / "base.nemo")), str(tmp_path / "base"))
    assert AutoTokenizer.from_pretrained(base).chat_template is None


def test_the_tokenizer_is_read_from_the_archive_only(tmp_path: Path) -> None:
    outside = tmp_path / "outside.model"
    outside.write_bytes(TOKENIZER)
    named = {"library": "sentencepiece", "model": str(outside)}
    described = nemo_settings(tokenizer=named)
    tensors = megatron_tensors(described, vocab_size=ROWS)
    path = write_nemo_file(tmp_path / "m.nemo", tensors, described)
    source = open_source(str(path))
    assert source.companions.tokenizer_names == []
    with pytest.raises(MinitronError, match="no tokenizer"):
        load_tokenizer(source)


def test_a_compressed_archive_logs_its_unpacking(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    open_source(str(write(tmp_path / "m.nemo", pack="tar.gz")))
    assert "m.nemo" in caplog.text
    assert "compressed" in caplog.text


class TestBadInput:
    """Each a line, exit 2, and nothing written."""

    @pytest.fixture
    def refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
        def run(source: Path, *options: str) -> str:
            before = sorted(tmp_path.rglob("*"))
            with pytest.raises(SystemExit) as ended:
                main(["convert", str(source), str(tmp_path / "out"), *options])
            assert ended.value.code == 2
            assert sorted(tmp_path.rglob("*")) == before
            line = capsys.readouterr().err.strip().splitlines()[-1]
            assert line.startswith("minitron: ")
            return line

        return run

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"activation": "fast-swiglu"}, "gated MLP"),
            ({"normalization": "rmsnorm"}, "rmsnorm"),
            ({"rotary_interleaved": True}, "rotary_interleaved"),
            ({"num_moe_experts": 8}, "num_moe_experts"),
            ({"position_embedding_type": "learned_absolute"}, "position_embedding_type"),
            ({"transformer_block_type": "post_ln"}, "transformer_block_type"),
            ({"target": "nemo.collections.asr.models.EncDecCTCModel"}, "EncDecCTCModel"),
        ],
    )
    def test_what_no_nemotron_is(
        self, change: dict[str, Any], says: str, tmp_path: Path, refused: Any
    ) -> None:
        # The tensors are a plain model's: the settings alone must be enough to refuse.
        tensors = megatron_tensors(nemo_settings(), vocab_size=ROWS)
        path = write(tmp_path / "m.nemo", settings=change, tensors=tensors)
        assert says in refused(path)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"num_layers": 5}, "layers.4"),
            ({"num_layers": 3}, "layers.3"),
            ({"hidden_size": 40}, "40"),
            ({"ffn_hidden_size": 70}, "70"),
            ({"num_query_groups": 3}, "linear_qkv"),
            ({"bias": True}, "bias"),
            ({"share_embeddings_and_output_weights": True}, "output_layer"),
        ],
    )
    def test_settings_that_disagree_with_the_tensors(
        self, change: dict[str, Any], says: str, tmp_path: Path, refused: Any
    ) -> None:
        tensors = megatron_tensors(nemo_settings(), vocab_size=ROWS)
        assert says in refused(write(tmp_path / "m.nemo", settings=change, tensors=tensors))

    @pytest.mark.parametrize("layout", ["zarr", "torch_dist", "state_dict"])
    @pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
    def test_an_archive_that_was_cut_off(
        self, layout: str, share: float, tmp_path: Path, refused: Any
    ) -> None:
        path = write(tmp_path / "m.nemo", layout=layout)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        assert "truncated" in refused(path)

    @pytest.mark.parametrize("layout", ["zarr", "torch_dist", "state_dict"])
    def test_values_that_are_no_numbers(self, layout: str, tmp_path: Path, refused: Any) -> None:
        tensors = megatron_tensors(nemo_settings(), vocab_size=ROWS)
        tensors["decoder.layers.2.mlp.linear_fc2.weight"][1, 1] = float("nan")
        path = write(tmp_path / "m.nemo", tensors=tensors, layout=layout)
        assert "model.layers.2.mlp.down_proj.weight holds NaN" in refused(path)

    def test_a_tokenizer_larger_than_the_embedding(self, tmp_path: Path, refused: Any) -> None:
        tensors = megatron_tensors(nemo_settings(), vocab_size=104)
        assert "300 tokens" in refused(write(tmp_path / "m.nemo", tensors=tensors))

    def test_something_that_is_no_checkpoint(self, tmp_path: Path, refused: Any) -> None:
        path = tmp_path / "m.nemo"
        with tarfile.open(path, "w") as archive:
            archive.add(__file__, "./readme.txt")
        assert "model_config.yaml" in refused(path)

    def test_a_folder_without_weights(self, tmp_path: Path, refused: Any) -> None:
        folder = tmp_path / "unpacked"
        shutil.copytree(FIXTURES / "nemo2_mc0123_tp2_bf16" / "model", folder)
        shutil.rmtree(folder / "weights")
        assert str(folder) in refused(folder)

    def test_ranks_that_tensorrt_llm_cannot_split(self, tmp_path: Path, refused: Any) -> None:
        path = write(tmp_path / "m.nemo")
        assert "tp" in refused(path, "--to", "trtllm", "--tp", "4", "--dtype", "bfloat16").lower()


def test_a_gated_model_is_refused_by_name(tmp_path: Path) -> None:
    settings = nemo_settings(activation="swiglu", tokenizer=NAMED)
    tensors = megatron_tensors(settings, vocab_size=ROWS)
    path = write_nemo_file(tmp_path / "m.nemo", tensors, settings, is_gated=True)
    with pytest.raises(ArchitectureError, match="gated MLP"):
        open_source(str(path))


@pytest.mark.parametrize("to", ["nemo", "nemo2"])
def test_other_families_are_no_nemo(to: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "llama", "llama")
    with pytest.raises(TargetError, match=f"is a llama: --to {to} takes only nemotron"):
        minitron.convert(str(folder), str(tmp_path / "out.nemo"), to=to)
    assert not (tmp_path / "out.nemo").exists()
