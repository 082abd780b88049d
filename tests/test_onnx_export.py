"""An ONNX graph computes what the model computes, whatever the batch, the lengths and the cache."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import modeling_nemotron
from minitron.conversion import onnx_export
from minitron.conversion.onnx_export import check_onnx, export_onnx
from minitron.errors import MissingExtraError, SourceError, TargetError
from tests.tiny import SIZES, tiny_folder, tiny_model

reason = "needs the extra onnx: pip install 'minitron[onnx]'"
onnx = pytest.importorskip("onnx", reason=reason)
pytest.importorskip("onnxscript", reason=reason)
onnxruntime = pytest.importorskip("onnxruntime", reason=reason)

LAYERS = 2
KV_HEADS, HEAD_DIM = SIZES["num_key_value_heads"], SIZES["head_dim"]


def session_of(folder: Path) -> "onnxruntime.InferenceSession":
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model(num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def folder(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    assert 0 < export_onnx(model, folder) < 1e-5
    return folder


def test_the_graphs_names_and_axes_are_those_that_optimum_reads(folder: Path) -> None:
    session = session_of(folder)
    batch, new = "batch_size", "sequence_length"
    past = [batch, KV_HEADS, "past_sequence_length", HEAD_DIM]
    cache = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    assert [(value.name, value.shape) for value in session.get_inputs()] == [
        ("input_ids", [batch, new]),
        ("attention_mask", [batch, "total_sequence_length"]),
        ("position_ids", [batch, new]),
        *((f"past_key_values.{name}", past) for name in cache),
    ]
    outputs = session.get_outputs()
    assert [value.name for value in outputs] == ["logits", *(f"present.{name}" for name in cache)]
    assert outputs[0].shape == [batch, new, SIZES["vocab_size"]]
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]


def test_greedy_decoding_of_a_left_padded_batch_is_generates(
    model: PreTrainedModel, folder: Path
) -> None:
    session = session_of(folder)
    ids = torch.randint(4, SIZES["vocab_size"], (3, 6), generator=torch.manual_seed(7))
    mask = torch.ones_like(ids)
    mask[1, :2], mask[2, :5] = 0, 0
    ids[mask == 0] = 0
    wanted = model.generate(
        ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False
    )

    past = {
        value.name: torch.zeros(3, KV_HEADS, 0, HEAD_DIM).numpy()
        for value in session.get_inputs()[3:]
    }
    found, new = ids, ids
    for _ in range(8):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        logits, *present = session.run(
            None,
            {
                "input_ids": new.numpy(),
                "attention_mask": mask.numpy(),
                "position_ids": positions.numpy(),
                **past,
            },
        )
        past = dict(zip(past, present, strict=True))
        last = torch.from_numpy(logits)[:, -1]
        last[:, model.config.eos_token_id] = -torch.inf  # as min_new_tokens does
        new = last.argmax(-1, keepdim=True)
        found = torch.cat([found, new], dim=1)
        mask = torch.cat([mask, torch.ones_like(new)], dim=1)
    assert torch.equal(found, wanted)


def test_what_the_cache_holds_is_what_the_models_holds(
    model: PreTrainedModel, folder: Path
) -> None:
    ids = torch.arange(10).view(2, 5)
    with torch.no_grad():
        cache = model(ids, use_cache=True)[modeling_nemotron.CACHE_NAME]
    session = session_of(folder)
    feed = {
        "input_ids": ids.numpy(),
        "attention_mask": torch.ones_like(ids).numpy(),
        "position_ids": torch.arange(5).expand(2, -1).numpy(),
    }
    empty = torch.zeros(2, KV_HEADS, 0, HEAD_DIM).numpy()
    feed |= {value.name: empty for value in session.get_inputs()[3:]}
    _, *present = session.run(None, feed)
    wanted = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    for found, part in zip(present, wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), part, rtol=1e-5, atol=1e-5)


def test_the_file_says_nothing_of_the_machine_that_wrote_it(folder: Path) -> None:
    written = (folder / "model.onnx").read_bytes()
    assert str(Path(__file__).parents[1]).encode() not in written
    assert b"site-packages" not in written


def test_the_model_is_left_as_it_was(model: PreTrainedModel, folder: Path) -> None:
    model.train()
    attention = model.config._attn_implementation
    assert attention != "eager"
    check_onnx(model, folder)
    assert model.training
    assert model.config._attn_implementation == attention
    model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        *("nemotron-biased", "llama-biased-tied", "mistral", "qwen2-sliding", "qwen3"),
        *("gemma3_text", "phi3"),  # of the later families, those that differ most from Llama
    ],
)
def test_every_family_computes_the_same_as_a_graph(variant: str, tmp_path: Path) -> None:
    other = tiny_model(variant, num_hidden_layers=3)
    assert export_onnx(other, tmp_path) < 1e-5
    assert session_of(tmp_path).get_inputs()[3].shape[1::2] == [KV_HEADS, HEAD_DIM]


def test_our_own_class_gives_the_same_graph_as_transformers(
    model: PreTrainedModel, folder: Path, tmp_path: Path
) -> None:
    source = tiny_folder(tmp_path / "source", num_hidden_layers=LAYERS)
    ours = modeling_nemotron.NemotronForCausalLM.from_pretrained(source)
    export_onnx(ours, tmp_path / "out")
    assert check_onnx(model, tmp_path / "out") < 1e-5
    assert check_onnx(ours, folder) < 1e-5


def test_large_weights_are_in_a_file_of_their_own_and_tied_ones_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_EMBEDDED_BYTES", 1000)
    large = tiny_model("nemotron-tied", num_hidden_layers=1, vocab_size=7001)
    assert export_onnx(large, tmp_path) < 1e-5

    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx_data"}
    assert (tmp_path / "model.onnx").stat().st_size < 100_000
    weights = 4 * large.num_parameters()  # a second copy of the embedding would be 1,176,168 more
    assert abs((tmp_path / "model.onnx_data").stat().st_size - weights) < 50_000
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    places = {entry.value for w in graph.initializer for entry in w.external_data[:1]}
    assert places == {"model.onnx_data"}


def test_a_graph_of_other_weights_is_found_out(folder: Path) -> None:
    other = tiny_model(num_hidden_layers=LAYERS)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[3, 5] += 0.5
    with pytest.raises(TargetError, match="logits differ from the model's"):
        check_onnx(other, folder)


def test_a_graph_that_computes_nan_is_found_out(
    model: PreTrainedModel, folder: Path, tmp_path: Path
) -> None:
    broken = onnx.load(folder / "model.onnx")
    largest = max(broken.graph.initializer, key=lambda weights: len(weights.raw_data))
    largest.raw_data = b"\xff" * len(largest.raw_data)
    onnx.save(broken, tmp_path / "model.onnx")
    with pytest.raises(TargetError, match="differ from the model's by inf"):
        check_onnx(model, tmp_path)


def test_a_graph_that_differs_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "TOLERANCE", 0.0)
    with pytest.raises(TargetError, match="cannot be exported to ONNX"):
        export_onnx(tiny_model(num_hidden_layers=1), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_finite_is_called_damaged(folder: Path) -> None:
    damaged = tiny_model(num_hidden_layers=LAYERS)
    with torch.no_grad():
        damaged.model.layers[0].mlp.up_proj.weight[1, 2] = torch.nan
    with pytest.raises(SourceError, match="not finite"):
        check_onnx(damaged, folder)


def test_rotary_embeddings_that_depend_on_the_length_are_refused(tmp_path: Path) -> None:
    rotary = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    dynamic = AutoModelForCausalLM.from_config(
        tiny_model("llama").config.__class__(
            **SIZES | {"num_hidden_layers": 1}, rope_parameters=rotary
        )
    )
    with pytest.raises(TargetError, match="the model cannot be exported to ONNX: "):
        export_onnx(dynamic, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="the model is in bfloat16: load it in float32"):
        export_onnx(tiny_model(dtype=torch.bfloat16), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} .*minitron\[onnx\]"):
        export_onnx(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
