"""Our Nemotron computes what transformers' own computes, and their checkpoints are one."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from transformers import GenerationConfig

from modeling_nemotron import CACHE_NAME
from tests.nemotron_models import (
    HEADS,
    OURS,
    SIZES,
    TRANSFORMERS,
    build,
    left_padded,
    packed,
    tokens,
)

BATCHES = {
    "plain": tokens(),
    "left padded": left_padded(),
    "packed": {**packed(), "use_cache": False},
    "embeddings": {
        "inputs_embeds": torch.randn(
            2, 7, SIZES["hidden_size"], generator=torch.Generator().manual_seed(2)
        )
    },
    "beyond the trained length": tokens(1, 100),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "a head for each key": {"num_key_value_heads": 6},
    "one key for all heads": {"num_key_value_heads": 1},
    "heads that fill the hidden size": {"head_dim": 8},
    "whole heads turned": {"partial_rotary_factor": 1.0},
    "tied embeddings": {"tie_word_embeddings": True},
    "padding token": {"pad_token_id": 0},
    "attention biases": {"attention_bias": True},
    "MLP biases": {"mlp_bias": True},
    "another activation": {"hidden_act": "gelu"},
    "another base": {"rope_theta": 123.0},
    "another epsilon": {"norm_eps": 0.1},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 3.0}},
    "dynamic rope": {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0}},
    "yarn rope": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "long rope": {
        "rope_parameters": {
            "rope_type": "longrope",
            "factor": 4.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4],
            "long_factor": [2.0, 2.1, 2.2, 2.3, 2.4],
            "original_max_position_embeddings": 16,
        }
    },
}


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def pair(head: str = "ForCausalLM", **changes: Any) -> tuple[Any, Any]:
    return build(OURS, head, **changes), build(TRANSFORMERS, head, **changes)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@torch.no_grad()
def test_logits_are_equal_on_every_kind_of_batch(batch: dict[str, Any], attention: str) -> None:
    ours, theirs = pair(attn_implementation=attention)
    mine, reference = ours(**batch).logits, theirs(**batch).logits
    if "attention_mask" in batch:  # padding may say anything
        shown = batch["attention_mask"].bool()
        mine, reference = mine[shown], reference[shown]
    close(mine, reference)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_logits_are_equal_for_every_variant_of_the_architecture(changes: dict[str, Any]) -> None:
    ours, theirs = pair(**changes)
    for batch in (tokens(2, 11), tokens(1, 100)):
        close(ours(**batch).logits, theirs(**batch).logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_logits_are_equal_token_by_token_with_a_cache(attention: str) -> None:
    ours, theirs = pair(attn_implementation=attention)
    ids = tokens(2, 12)["input_ids"]
    whole = theirs(ids).logits
    our_cache = their_cache = None
    for start, end in [(0, 7), *((position, position + 1) for position in range(7, 12))]:
        step = ours(ids[:, start:end], **{CACHE_NAME: our_cache})
        reference = theirs(ids[:, start:end], **{CACHE_NAME: their_cache})
        our_cache, their_cache = step[CACHE_NAME], reference[CACHE_NAME]
        close(step.logits, reference.logits)
        close(step.logits, whole[:, start:end])


@torch.no_grad()
def test_packed_texts_give_the_logits_they_give_alone() -> None:
    ours, row = build(OURS), packed((5, 9, 3))
    together = ours(**row, use_cache=False).logits[0]
    apart = [ours(ids[None]).logits[0] for ids in row["input_ids"][0].split([5, 9, 3])]
    close(together, torch.cat(apart))


@torch.no_grad()
def test_left_padding_does_not_change_a_texts_logits() -> None:
    ours, batch = build(OURS), left_padded((17, 9))
    alone = ours(batch["input_ids"][1:, -9:]).logits[0]
    close(ours(**batch).logits[1, -9:], alone)


@torch.no_grad()
def test_hidden_states_and_attentions_are_equal() -> None:
    ours, theirs = pair(attn_implementation="eager")
    wanted = {"output_hidden_states": True, "output_attentions": True}
    mine, reference = ours(**tokens(), **wanted), theirs(**tokens(), **wanted)
    assert len(mine.hidden_states) == SIZES["num_hidden_layers"] + 1
    assert len(mine.attentions) == SIZES["num_hidden_layers"]
    close(mine.hidden_states, reference.hidden_states)
    close(mine.attentions, reference.attentions)


SHOWN = torch.rand(2, 17, generator=torch.Generator().manual_seed(3)) < 0.3


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (0, lambda logits: logits),
        (1, lambda logits: logits[:, 16:]),
        (3, lambda logits: logits[:, 14:]),
        (torch.tensor([0, 5, 16]), lambda logits: logits[:, [0, 5, 16]]),
        (torch.tensor([[2, 3], [9, 4]]), lambda logits: logits[[[0], [1]], [[2, 3], [9, 4]]]),
        (SHOWN, lambda logits: logits[SHOWN]),
    ],
    ids=["all", "one", "three", "numbers", "numbers of each row", "a mask"],
)
@torch.no_grad()
def test_logits_to_keep_gives_these_logits_and_no_others(
    kept: int | torch.Tensor, expected: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    ours, theirs = pair()
    logits = ours(**tokens(2, 17), logits_to_keep=kept).logits
    close(logits, expected(ours(**tokens(2, 17)).logits))
    is_plain = isinstance(kept, int) or kept.dim() == 1
    if is_plain or hasattr(transformers.modeling_utils, "slice_logits_to_keep"):  # 5.21 has it
        close(logits, theirs(**tokens(2, 17), logits_to_keep=kept).logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_every_gradient_are_equal(attention: str) -> None:
    ours, theirs = pair(attn_implementation=attention)
    batch = left_padded()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    losses = []
    for model in (ours, theirs):
        model.train()
        losses.append(model(**batch, labels=labels, num_items_in_batch=torch.tensor(20)).loss)
        losses[-1].backward()
    close(*losses)
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_every_head_has_transformers_keys_and_results(head: str) -> None:
    ours, theirs = pair(head, pad_token_id=0, num_labels=5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    batch = left_padded()
    mine, reference = ours(**batch), theirs(**batch)
    assert list(mine) == list(reference)
    shown = batch["attention_mask"].bool()
    for name in ("last_hidden_state", "logits", "start_logits", "end_logits"):
        if name in mine:
            per_token = mine[name].shape[:2] == shown.shape
            close(*((out[name][shown] if per_token else out[name]) for out in (mine, reference)))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("writer", "reader"), [(OURS, TRANSFORMERS), (TRANSFORMERS, OURS)])
@torch.no_grad()
def test_a_checkpoint_of_either_class_is_bit_equal_in_the_other(
    writer: ModuleType, reader: ModuleType, head: str, tmp_path: Path
) -> None:
    model = build(writer, head, attention_bias=True, num_labels=5).bfloat16()
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "nemotron"
    assert written["architectures"] == [f"Nemotron{head}"]
    assert "auto_map" not in written
    loaded, report = getattr(reader, f"Nemotron{head}").from_pretrained(
        tmp_path, dtype="auto", output_loading_info=True
    )
    assert not any(report.values())
    state = loaded.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(
        torch.equal(tensor, state[name]) and tensor.dtype == state[name].dtype
        for name, tensor in model.state_dict().items()
    )


@torch.no_grad()
def test_a_head_made_from_a_language_model_travels_to_transformers(tmp_path: Path) -> None:
    build(OURS).save_pretrained(tmp_path / "language")
    answering = OURS.NemotronForQuestionAnswering.from_pretrained(tmp_path / "language")
    answering.save_pretrained(tmp_path / "answering")
    loaded, report = TRANSFORMERS.NemotronForQuestionAnswering.from_pretrained(
        tmp_path / "answering", output_loading_info=True
    )
    assert not any(report.values())
    torch.testing.assert_close(
        loaded(**tokens()).start_logits, answering(**tokens()).start_logits, atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_tied_embeddings_are_saved_once_and_tied_again(tmp_path: Path) -> None:
    ours = build(OURS, tie_word_embeddings=True)
    ours.save_pretrained(tmp_path)
    loaded = OURS.NemotronForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded(**tokens()).logits, ours(**tokens()).logits)


@pytest.mark.parametrize(
    "how",
    [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 2}],
    ids=["greedy", "beams", "lookup"],
)
def test_generated_tokens_are_equal(how: dict[str, Any]) -> None:
    ours, theirs = pair()
    batch = {name: left_padded()[name] for name in ("input_ids", "attention_mask")}
    if "prompt_lookup_num_tokens" in how:
        batch = tokens(1, 9)
    config = GenerationConfig(
        max_new_tokens=8, do_sample=False, eos_token_id=3, pad_token_id=0, **how
    )
    assert torch.equal(
        ours.generate(**batch, generation_config=config),
        theirs.generate(**batch, generation_config=config),
    )


def test_fresh_weights_have_transformers_spread_but_for_the_norms() -> None:
    models = [
        library.NemotronForCausalLM(library.NemotronConfig(**SIZES, initializer_range=0.05))
        for library in (OURS, TRANSFORMERS)
    ]
    for (name, ours), (_, theirs) in zip(
        *(model.named_parameters() for model in models), strict=True
    ):
        if ours.dim() == 2:
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.1), name
            assert ours.std().item() == pytest.approx(0.05, rel=0.1), name
        elif name.endswith("bias"):
            assert not ours.any(), name
