"""The chat template of Nemotron-Mini-4B-Instruct, and where its answers stop."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import modeling_nemotron
from tests.nemotron_models import OURS, build, tokens

SYSTEM = {"role": "system", "content": "Be kind.\n"}
USER = {"role": "user", "content": " What is up? "}
ASSISTANT = {"role": "assistant", "content": "Not much."}


def get_weather(city: str) -> str:
    """
    Report the weather.

    Args:
        city: The name of the city.
    """
    return f"It rains in {city}."


def rendered(messages: list[dict[str, Any]], **kwargs: Any) -> str:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    )
    tokenizer.chat_template = modeling_nemotron.CHAT_TEMPLATE
    text = tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
    assert isinstance(text, str)
    return text


def test_a_system_prompt_and_a_question_are_laid_out_as_the_model_card_says() -> None:
    assert rendered([SYSTEM, USER], add_generation_prompt=True) == (
        "<extra_id_0>System\nBe kind.\n\n<extra_id_1>User\nWhat is up?\n<extra_id_1>Assistant\n"
    )


def test_the_system_turn_is_opened_even_when_empty() -> None:
    assert rendered([USER]) == "<extra_id_0>System\n\n<extra_id_1>User\nWhat is up?\n"


def test_turns_follow_each_other() -> None:
    assert rendered([SYSTEM, USER, ASSISTANT, USER], add_generation_prompt=True) == (
        "<extra_id_0>System\nBe kind.\n\n"
        "<extra_id_1>User\nWhat is up?\n"
        "<extra_id_1>Assistant\nNot much.\n"
        "<extra_id_1>User\nWhat is up?\n"
        "<extra_id_1>Assistant\n"
    )


def test_each_text_is_a_prefix_of_the_next() -> None:
    talk = [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]
    for turns in (2, 4):
        asked = rendered(talk[:turns], add_generation_prompt=True)
        assert rendered(talk[: turns + 1]).startswith(asked)


def test_tools_contexts_calls_and_answers_are_laid_out_as_the_model_card_says() -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
    text = rendered(
        [
            SYSTEM,
            USER,
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "It rains."},
        ],
        tools=[get_weather],
        contexts=["Rome is a city. "],
        add_generation_prompt=True,
    )
    head, tail = text.split("<tool> ")
    tool, tail = tail.split(" </tool>")
    assert head == "<extra_id_0>System\nBe kind.\n\n"
    assert '"name": "get_weather"' in tool
    assert tail == (
        "\n<context> Rome is a city. </context>\n\n"
        "<extra_id_1>User\nWhat is up?\n"
        "<extra_id_1>Assistant\n"
        '<toolcall> {"name": "get_weather", "arguments": {"city": "Rome"}} </toolcall>\n'
        "<extra_id_1>Tool\nIt rains.\n"
        "<extra_id_1>Assistant\n"
    )


def test_contexts_come_one_a_line() -> None:
    assert rendered([USER], contexts=["one", "two"]) == (
        "<extra_id_0>System\n\n<context> one </context>\n<context> two </context>\n\n"
        "<extra_id_1>User\nWhat is up?\n"
    )


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(Exception, match="role narrator is not system, user, assistant or tool"):
        rendered([{"role": "narrator", "content": "Once."}])


def test_a_name_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="CHAT_TEMPLATES"):
        modeling_nemotron.CHAT_TEMPLATES  # noqa: B018


@pytest.mark.parametrize(
    ("eos", "ends"), [(3, [3, 5]), ([3, 7], [3, 7, 5]), ([3, 5], [3, 5]), (None, [5])]
)
def test_a_chat_stops_at_the_next_turn_and_at_the_end_of_text(eos: Any, ends: list[int]) -> None:
    config = OURS.NemotronConfig(eos_token_id=eos, pad_token_id=0)
    generation = modeling_nemotron.chat_generation_config(config)
    assert generation.eos_token_id == ends
    assert (generation.bos_token_id, generation.pad_token_id) == (2, 0)


def test_generation_ends_after_the_token_that_opens_a_turn() -> None:
    model = build(OURS, pad_token_id=0, tie_word_embeddings=False)
    model.lm_head.weight.data.zero_()
    model.model.norm.weight.data.fill_(-1)
    model.model.norm.bias.data.fill_(1)  # every position says the same,
    model.lm_head.weight.data[5] = 1  # and what it says is <extra_id_1>
    model.generation_config = modeling_nemotron.chat_generation_config(model.config)
    generated = model.generate(**tokens(1, 4), max_new_tokens=9, do_sample=False)
    assert generated[0, 4:].tolist() == [5]
    assert isinstance(generated, torch.Tensor)
