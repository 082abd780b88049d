"""A cache changes nothing but the time, under either of its names, in every version allowed.

transformers 5.24 renamed `past_key_values` to `cache`; a forward that takes any keyword would take
the other name and not use it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StaticCache, Trainer, TrainingArguments

from modeling_nemotron import CACHE_NAME
from tests.nemotron_models import HEADS, OURS, TRANSFORMERS, build, left_padded, tokens

NAMES = ("past_key_values", "cache")
GREEDY = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False, "pad_token_id": 0}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def of_each_token(output: Any) -> Tensor:
    """What a head computes for each position."""
    names = ("last_hidden_state", "logits", "start_logits")
    return torch.as_tensor(next(output[name] for name in names if name in output))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "empty",
    [lambda config: DynamicCache(config=config), lambda config: StaticCache(config, 32)],
    ids=["dynamic", "static"],
)
@pytest.mark.parametrize("head", ["Model", "ForCausalLM", "ForTokenClassification"])
@torch.no_grad()
def test_text_in_parts_gives_what_it_gives_at_once(
    head: str, empty: Callable[[Any], Any], name: str
) -> None:
    model, ids = build(OURS, head), tokens(2, 12)["input_ids"]
    cache = empty(model.config)
    parts = [of_each_token(model(part, **{name: cache})) for part in ids.split([6, 1, 4, 1], dim=1)]
    close(torch.cat(parts, dim=1), of_each_token(model(ids, use_cache=False)))
    assert int(cache.get_seq_length()) == 12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_every_head_reads_a_cache_as_transformers_does(head: str, name: str) -> None:
    ours, theirs = (build(library, head, pad_token_id=0) for library in (OURS, TRANSFORMERS))
    ids = tokens(2, 12)["input_ids"]
    caches = [DynamicCache(config=model.config) for model in (ours, theirs)]
    ours(ids[:, :7], **{name: caches[0]})
    theirs(ids[:, :7], **{CACHE_NAME: caches[1]})
    mine = ours(ids[:, 7:], **{name: caches[0]})
    reference = theirs(ids[:, 7:], **{CACHE_NAME: caches[1]})
    assert list(mine) == list(reference)
    close(of_each_token(mine), of_each_token(reference))
    assert not torch.equal(of_each_token(mine), of_each_token(ours(ids[:, 7:])))


@torch.no_grad()
def test_a_layer_takes_the_cache_under_either_name() -> None:
    model = build(OURS, "Model")
    states = torch.randn(1, 3, 48, generator=torch.manual_seed(0))
    positions = model.rotary_emb(states, torch.arange(3)[None])
    for name in NAMES:
        cache = DynamicCache(config=model.config)
        model.layers[1](states, position_embeddings=positions, **{name: cache})
        assert cache.get_seq_length(1) == 3


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_two_different_caches_are_refused_and_one_given_twice_is_one(head: str) -> None:
    model = build(OURS, head, pad_token_id=0)
    first, second = (DynamicCache(config=model.config) for _ in range(2))
    with pytest.raises(ValueError, match="cache and past_key_values are two different caches"):
        model(**tokens(), cache=first, past_key_values=second)
    once = of_each_token(model(**tokens(), cache=first, past_key_values=first))
    assert first.get_seq_length() == 17
    close(once, of_each_token(model(**tokens())))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_a_keyword_that_nothing_reads_is_refused(head: str, attention: str) -> None:
    model = build(OURS, head, pad_token_id=0, attn_implementation=attention)
    with pytest.raises(TypeError, match="no keyword past_key_value, chache: leave it out"):
        model(**tokens(), past_key_value=1, chache=DynamicCache(), head_mask=None)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_what_kernels_losses_and_tokenizers_give_is_taken(attention: str) -> None:
    model, batch = build(OURS, attn_implementation=attention), tokens()
    given = {
        "token_type_ids": torch.zeros_like(batch["input_ids"]),
        "head_mask": None,
        "num_items_in_batch": torch.tensor(32),
        "ignore_index": 7,
        "output_hidden_states": True,
        "return_dict": True,
        "seq_idx": None,
    }
    output = model(**batch, labels=batch["input_ids"], **given)
    close(output.logits, model(**batch).logits)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.3},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
        {"cache_implementation": "static", "disable_compile": True},
    ],
    ids=["greedy", "beams", "some beams", "sampled", "static"],
)
def test_generation_with_a_cache_is_generation_without_one(how: dict[str, Any]) -> None:
    batch = {name: left_padded()[name] for name in ("input_ids", "attention_mask")}
    without = {**how, "use_cache": False, "cache_implementation": None}
    made = []
    for library in (OURS, TRANSFORMERS):
        for settings in (how, without):
            torch.manual_seed(5)
            config = GenerationConfig(**{**GREEDY, "use_cache": True, **settings})
            made.append(build(library).generate(**batch, generation_config=config))
    assert made[0].shape[1] == 17 + 9
    assert all(torch.equal(each, made[0]) for each in made[1:])


@pytest.mark.parametrize("how", ["assistant", "lookup"])
def test_assisted_generation_is_plain_generation(how: str) -> None:
    model, batch = build(OURS), tokens(1, 9)
    plain = model.generate(**batch, generation_config=GenerationConfig(**GREEDY), use_cache=False)
    helper: dict[str, Any] = {"prompt_lookup_num_tokens": 2}
    if how == "assistant":
        helper = {"assistant_model": build(OURS, num_hidden_layers=2)}
    helped = model.generate(**batch, generation_config=GenerationConfig(**GREEDY), **helper)
    assert torch.equal(helped, plain)


def test_generation_continues_from_a_cache_that_is_given() -> None:
    model, ids = build(OURS), tokens(1, 9)["input_ids"]
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :5], cache=cache)
    settings = GenerationConfig(**GREEDY)
    plain = model.generate(ids, generation_config=settings, use_cache=False)
    assert torch.equal(
        model.generate(ids, generation_config=settings, **{CACHE_NAME: cache}), plain
    )


def test_a_trainers_predictions_are_the_logits_alone(tmp_path: Path) -> None:
    model = build(OURS)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True
    )
    arguments.dataloader_pin_memory = False
    ids = tokens(1, 6)["input_ids"][0]
    data: Any = [{"input_ids": ids, "labels": ids}] * 2
    model.config.use_cache = True
    predicted = Trainer(model=model, args=arguments).predict(data)
    with torch.no_grad():
        wanted = model(torch.stack([ids, ids])).logits
    close(torch.as_tensor(predicted.predictions), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_is_left_alone_where_layers_are_checkpointed(name: str) -> None:
    model = build(OURS).train()
    # 5.20 has the old name alone, and later ones warn of it.
    new_name = hasattr(model, "activation_checkpointing_enable")
    getattr(model, f"{'activation' if new_name else 'gradient'}_checkpointing_enable")()
    cache = DynamicCache(config=model.config)
    model(**tokens(), labels=tokens()["input_ids"], **{name: cache}).loss.backward()
    assert cache.get_seq_length() == 0
