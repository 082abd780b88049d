"""Every way transformers and torch run a model gives the same numbers with ours."""

# torch.compiler is typed only in parts.
# mypy: allow-untyped-calls

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import GenerationConfig, StaticCache, Trainer, TrainingArguments
from transformers.distributed.configuration_utils import DistributedConfig

from tests.nemotron_models import OURS, SIZES, build, left_padded, packed, tokens
from tests.processes import together


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize(
    "batch", [tokens(), {**packed(), "use_cache": False}], ids=["plain", "packed"]
)
@torch.no_grad()
def test_flex_attention_gives_what_sdpa_gives(batch: dict[str, Any]) -> None:
    flex = build(OURS, attn_implementation="flex_attention")
    with torch.compiler.set_stance("force_eager"):  # the kernel's own compilation takes a minute
        logits = flex(**batch).logits
    close(logits, build(OURS, attn_implementation="sdpa")(**batch).logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_a_static_cache_gives_the_logits_of_the_whole_text(attention: str) -> None:
    model = build(OURS, attn_implementation=attention)
    ids = tokens(2, 12)["input_ids"]
    cache = StaticCache(config=model.config, max_cache_len=32)
    parts = [model(part, past_key_values=cache).logits for part in ids.split([7, 1, 1, 3], dim=1)]
    close(torch.cat(parts, dim=1), model(ids).logits)


def test_generation_with_a_static_cache_gives_the_same_tokens() -> None:
    model, batch = build(OURS), left_padded()
    del batch["position_ids"]
    config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=130, pad_token_id=0)
    static = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(
        model.generate(**batch, generation_config=config, **static),
        model.generate(**batch, generation_config=config),
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_the_whole_model_compiles_into_one_graph(attention: str) -> None:
    torch.compiler.reset()
    model = build(OURS, attn_implementation=attention)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    close(compiled(**tokens(), use_cache=False).logits, model(**tokens()).logits)


@torch.no_grad()
def test_a_decoding_step_compiles_into_one_graph_and_is_not_compiled_again() -> None:
    torch.compiler.reset()
    model = build(OURS)
    ids = tokens(1, 12)["input_ids"]
    cache = StaticCache(config=model.config, max_cache_len=32)
    step = torch.compile(model, fullgraph=True, backend="aot_eager")
    logits = [model(ids[:, :7], past_key_values=cache).logits]
    logits.append(step(ids[:, 7:8], past_key_values=cache).logits)
    with torch.compiler.set_stance("fail_on_recompile"):
        logits += [step(ids[:, at : at + 1], past_key_values=cache).logits for at in range(8, 12)]
    close(torch.cat(logits, dim=1), model(ids).logits)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@torch.no_grad()
def test_a_compiled_norm_is_rounded_once_too() -> None:
    torch.compiler.reset()
    norm = build(OURS).bfloat16().model.norm
    hidden = torch.randn(7, SIZES["hidden_size"], generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager_decomp_partition")
    assert torch.equal(compiled(hidden.bfloat16()), norm(hidden.bfloat16()))


@torch.no_grad()
def test_an_exported_program_takes_any_batch_and_length() -> None:
    model = build(OURS)
    batch, length = torch.export.Dim("batch", max=8), torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(
        model,
        (),
        {**tokens(2, 17), "use_cache": False},
        dynamic_shapes={"input_ids": {0: batch, 1: length}, "use_cache": None},
    ).module()
    for other in (tokens(1, 30), tokens(5, 3)):
        close(program(**other, use_cache=False).logits, model(**other).logits)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant: bool) -> None:
    gradients: list[dict[str, Tensor]] = []
    for is_checkpointed in (False, True):
        model = build(OURS).train()
        if is_checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        model(**tokens(), labels=tokens()["input_ids"], use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    close(gradients[1], gradients[0])


def test_dropout_works_in_training_only() -> None:
    model = build(OURS, attention_dropout=0.5)
    assert torch.equal(model(**tokens()).logits, model(**tokens()).logits)
    model.train()
    assert not torch.equal(model(**tokens()).logits, model(**tokens()).logits)


@pytest.mark.parametrize("has_cpu_autocast", [False, True])
def test_the_trainer_lowers_the_loss(has_cpu_autocast: bool, tmp_path: Path) -> None:
    model = OURS.NemotronForCausalLM(OURS.NemotronConfig(**SIZES, initializer_range=0.1))
    text = tokens(1, 24)["input_ids"][0]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        learning_rate=1e-2,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        logging_steps=1,
        bf16=has_cpu_autocast,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data = [{"input_ids": text, "labels": text}] * 8
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert losses[0] == pytest.approx(torch.tensor(SIZES["vocab_size"]).log().item(), rel=0.2)


@torch.no_grad()
def test_autocast_and_float32_agree_to_bfloat16() -> None:
    model = build(OURS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(**tokens()).logits
    assert logits.dtype is torch.bfloat16
    exact = model(**tokens()).logits
    assert (logits - exact).norm() < 0.02 * exact.norm()


@torch.no_grad()
def test_shapes_can_be_worked_out_without_weights() -> None:
    with torch.device("meta"):
        model = OURS.NemotronForCausalLM(OURS.NemotronConfig(**SIZES))
        ids = torch.zeros(2, 7, dtype=torch.long)
        assert model(ids).logits.shape == (2, 7, SIZES["vocab_size"])


@torch.no_grad()
def test_the_vocabulary_can_grow() -> None:
    model = build(OURS)
    before = model(**tokens()).logits
    model.resize_token_embeddings(SIZES["vocab_size"] + 3)
    after = model(**tokens()).logits
    assert model.config.vocab_size == after.shape[-1] == SIZES["vocab_size"] + 3
    assert torch.equal(after[..., : SIZES["vocab_size"]], before)


@torch.no_grad()
def test_the_input_must_be_given_once() -> None:
    model = build(OURS)
    embeddings = model.get_input_embeddings()(tokens()["input_ids"])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(**tokens(), inputs_embeds=embeddings)
    with pytest.raises(ValueError, match="exactly one"):
        model()


def run_in_parallel(rank: int, folder: str) -> None:
    """One of two processes: tensor, then pipeline parallel, against the whole model."""
    dist.init_process_group("gloo")
    load: Any = OURS.NemotronForCausalLM.from_pretrained
    whole = load(folder)
    by_tensors = load(folder, distributed_config=DistributedConfig(tp_size=2))
    by_layers = load(folder, distributed_config=DistributedConfig(pp_size=2))
    half = by_tensors.model.layers[1].mlp.up_proj.weight.to_local()
    assert half.shape == (SIZES["intermediate_size"] // 2, SIZES["hidden_size"])
    output = {**tokens(1, 6), "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    for parts in (by_tensors, by_layers):
        with torch.no_grad():
            close(parts(**tokens()).logits, whole(**tokens()).logits)
        assert torch.equal(parts.generate(**output), whole.generate(**output))
    for model in (whole, by_tensors):
        model(**tokens(), labels=tokens()["input_ids"]).loss.backward()
    gradients = dict(whole.named_parameters())
    for name, parameter in by_tensors.named_parameters():
        gradient = parameter.grad
        gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        close(gradient, gradients[name].grad)
    dist.destroy_process_group()


def test_two_processes_give_what_one_gives_by_tensors_and_by_layers(tmp_path: Path) -> None:
    build(OURS, attention_bias=True, mlp_bias=True).save_pretrained(tmp_path)
    together(run_in_parallel, str(tmp_path))
