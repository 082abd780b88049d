"""What transformers' own Nemotron does badly and ours does well (D1 to D10, and one more).

Each test runs on both classes, and on transformers' it must fail.
"""

import gc
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers.integrations
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.nemotron_models import OURS, SIZES, TRANSFORMERS, build, mended_here, packed, tokens


@pytest.fixture
def frozen_heap() -> Iterator[None]:
    """Continuous batching collects garbage twice a call: seconds each, unless it is frozen."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.usefixtures("frozen_heap")
@mended_here()
def test_continuous_batching_gives_what_generate_gives(library: ModuleType, attention: str) -> None:
    model = build(library, attn_implementation=attention)
    greedy = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=130, pad_token_id=0)
    prompts = [[5, 6, 7, 8, 9], [10, 11, 12], [20] * 9]
    batched = model.generate_batch(
        inputs=prompts,
        generation_config=greedy,
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=16, page_size=8, max_batch_tokens=32
        ),
    )
    alone = [
        model.generate(torch.tensor([prompt]), generation_config=greedy)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    assert [batched[name].generated_tokens for name in sorted(batched)] == alone


@mended_here()
def test_what_the_caller_says_of_packed_sequences_reaches_the_attention_kernel(
    library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[dict[str, Any]] = []
    model = build(library, attn_implementation="eager")

    def listen(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        heard.append(kwargs)
        return query.transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "listening", listen)
    model.config._attn_implementation_internal = "listening"
    bounds = torch.tensor([0, 5, 17], dtype=torch.int32)
    model(**tokens(1, 17), cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=12)
    assert len(heard) == SIZES["num_hidden_layers"]
    assert all(kwargs.get("cu_seq_lens_q") is bounds for kwargs in heard)
    assert all(kwargs.get("max_length_q") == 12 for kwargs in heard)


@mended_here()
def test_packed_texts_do_not_see_each_other_even_when_a_cache_is_kept(library: ModuleType) -> None:
    model, row = build(library), packed((5, 9, 3))
    together = model(**row).logits[0]  # use_cache is on by default
    apart = [model(input_ids=ids[None]).logits[0] for ids in row["input_ids"][0].split([5, 9, 3])]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=0)


@mended_here()
def test_a_fresh_norm_has_gain_one(library: ModuleType) -> None:
    model = library.NemotronForCausalLM(library.NemotronConfig(**SIZES))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert not parameter.any(), name
    hidden = torch.randn(3, SIZES["hidden_size"], generator=torch.Generator().manual_seed(0))
    expected = F.layer_norm(hidden, hidden.shape[-1:], eps=model.config.norm_eps)
    torch.testing.assert_close(model.model.norm(hidden), expected)


@mended_here()
def test_a_norm_missing_from_a_checkpoint_is_made_with_gain_one(
    library: ModuleType, tmp_path: Path
) -> None:
    model = build(library)
    kept = {name: value for name, value in model.state_dict().items() if "model.norm" not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    assert not type(model).from_pretrained(tmp_path).model.norm.weight.any()


@mended_here(TypeError)
def test_key_value_heads_default_to_the_number_of_heads(library: ModuleType) -> None:
    config = library.NemotronConfig(**{**SIZES, "num_key_value_heads": None})
    layer = library.NemotronModel(config).layers[0].self_attn
    assert layer.k_proj.weight.shape == layer.q_proj.weight.shape


@mended_here()
def test_the_pipeline_plan_covers_every_part_of_the_model(library: ModuleType) -> None:
    model = build(library)
    parts = {f"model.{name}" for name, _ in model.model.named_children()} | {"lm_head"}
    assert set(model._pp_plan) == parts - {"model.rotary_emb"}


@mended_here()
def test_the_norm_and_the_rotary_embedding_can_be_replaced_by_hub_kernels(
    library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks: list[str] = []

    def recording(name: str) -> Any:
        hooks.append(name)
        return lambda thing: thing

    for place in (transformers.integrations, transformers.integrations.hub_kernels):
        monkeypatch.setattr(place, "use_kernel_forward_from_hub", recording)
    source = Path(str(library.__file__)).with_name("modeling_nemotron.py")
    spec = importlib.util.spec_from_file_location(f"{library.__name__}.another_copy", source)
    assert spec is not None
    assert spec.loader is not None
    another_copy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, another_copy)
    spec.loader.exec_module(another_copy)
    assert sorted(hooks) == ["LayerNorm1P", "rotary_pos_emb"]


@mended_here()
def test_question_answering_starts_from_a_language_models_backbone(
    library: ModuleType, tmp_path: Path
) -> None:
    model = build(library)
    model.save_pretrained(tmp_path)
    answering, report = library.NemotronForQuestionAnswering.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert report["missing_keys"] == {"qa_outputs.weight", "qa_outputs.bias"}
    assert report["unexpected_keys"] == {"lm_head.weight"}
    backbone = answering.transformer.state_dict()
    assert all(
        torch.equal(value, backbone[name]) for name, value in model.model.state_dict().items()
    )


@mended_here()
def test_a_bfloat16_norm_is_rounded_once_at_its_end(library: ModuleType) -> None:
    norm = build(library, dtype=torch.bfloat16).bfloat16().model.norm
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, SIZES["hidden_size"], generator=generator).bfloat16()
    exact = F.layer_norm(
        hidden.double(), hidden.shape[-1:], norm.weight.double() + 1, norm.bias.double(), norm.eps
    )
    nearest = norm(hidden) == exact.bfloat16()
    assert nearest.double().mean() > 0.999  # float32 may round a tie the other way


@torch.no_grad()
def test_bfloat16_logits_are_nearer_to_exact_ones_than_transformers_are() -> None:
    sizes: dict[str, Any] = {"num_hidden_layers": 16, "hidden_size": 96}
    batch = tokens(4, 32)
    exact = build(OURS, **sizes).double()(**batch).logits

    def error(library: ModuleType) -> float:
        logits = build(library, **sizes).bfloat16()(**batch).logits.double()
        return float((logits - exact).norm() / exact.norm())

    assert error(OURS) < error(TRANSFORMERS)


@mended_here()
def test_a_norm_follows_autocast_on_the_cpu(library: ModuleType) -> None:
    norm = build(library).model.norm
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(torch.ones(1, SIZES["hidden_size"])).dtype is torch.bfloat16


@mended_here(KeyError)
def test_new_rope_parameters_need_not_repeat_the_rotary_factor(library: ModuleType) -> None:
    config = library.NemotronConfig(**SIZES, partial_rotary_factor=0.2)
    config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    rotary = library.NemotronModel(config).rotary_emb
    assert rotary.inv_freq.tolist() == pytest.approx([0.5, 0.5 / 500**0.5])


@pytest.mark.parametrize(
    ("legacy", "name", "value"),
    [
        ({"num_attention_heads": 48, "kv_channels": 128}, "head_dim", 128),  # Minitron-8B-Base
        ({"rope_percent": 0.25}, "partial_rotary_factor", 0.25),
        ({"rope_percentage": 1.0}, "partial_rotary_factor", 1.0),
    ],
)
@mended_here()
def test_a_key_of_the_first_published_configs_is_read(
    library: ModuleType, legacy: dict[str, Any], name: str, value: float
) -> None:
    config = library.NemotronConfig(**{"hidden_size": 4096, "num_attention_heads": 32, **legacy})
    stated = {"head_dim": config.head_dim, **config.rope_parameters}
    assert stated[name] == value
