"""What is generated is what transformers generates, and the pieces it comes in lose nothing."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import minitron
from minitron.cli import main
from minitron.errors import SourceError, TargetError, TokenizerError
from minitron.recipes.first_steps import GenerateRecipe
from minitron.sources.opening import zoo
from minitron.verbs.generate import stream_model
from tests.tiny import edit_config, tiny_folder, tiny_model, zoo_tokenizer

VOCABULARY = 4096
PROMPT = "It was the best of times,"


@pytest.fixture(scope="module", params=["nemotron", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "model"
    tiny_folder(path, request.param, vocab_size=VOCABULARY)
    for file in zoo()["tiny"].glob("tokenizer*"):
        shutil.copy(file, path)
    return path


def by_transformers(folder: Path, prompt: str, tokens: int, **settings: Any) -> str:
    tokenizer = zoo_tokenizer()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **settings
    )
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def streamed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, tokens: int
) -> list[str]:
    pieces: list[str] = []
    recipe = GenerateRecipe("a model", prompt, max_new_tokens=tokens)
    stream_model(model, tokenizer, recipe, pieces.append)
    return pieces


def reciting_model(ids: list[int], vocab_size: int) -> PreTrainedModel:
    """A model whose likeliest token after each of `ids` is the next of them.

    Its layers add nothing, so the last norm sees the embedding of the last token alone.
    """
    assert len(set(ids)) == len(ids), "one token cannot have two successors"
    model = tiny_model("nemotron", hidden_size=168, vocab_size=vocab_size)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.zero_()  # a gain of 1: the norm adds 1 to its weight
        model.model.norm.bias.zero_()
        embedding = torch.randn(vocab_size, 168)
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.zero_()
        for token, successor in zip(ids, ids[1:], strict=False):
            model.lm_head.weight[successor] = embedding[token]
    return model


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """Words with their space before them and single bytes; decoding drops the first space.

    So the tokenizers of Llama 2 and Mistral do.
    """
    words = ["<pad>", "<unk>", "<s>", "</s>", "▁It", "▁was", "▁the", "▁best", "▁of", "▁times"]
    pieces = [*words, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.WordLevel({piece: index for index, piece in enumerate(pieces)}, "<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def test_greedy_is_what_transformers_generates(folder: Path) -> None:
    wanted = by_transformers(folder, PROMPT, 17, do_sample=False)
    assert len(wanted) > 20
    assert minitron.generate(str(folder), PROMPT, max_new_tokens=17) == wanted


def test_the_command_prints_the_prompt_and_what_follows_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["generate", str(folder), PROMPT, "--max-new-tokens", "5"])
    wanted = by_transformers(folder, PROMPT, 5, do_sample=False)
    assert capsys.readouterr().out == f"{PROMPT}{wanted}\n"


def test_the_command_prints_the_prompt_where_nothing_follows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = zoo_tokenizer()
    (last,) = tokenizer.encode("It", add_special_tokens=False)
    reciting_model([last, 3], VOCABULARY).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    main(["generate", str(tmp_path / "model"), "It"])
    assert capsys.readouterr().out == "It\n"


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 1.0), (2.0, 0.5)])
def test_sampling_is_what_transformers_samples_from_the_same_seed(
    folder: Path, temperature: float, top_p: float
) -> None:
    settings = {"temperature": temperature, "top_p": top_p}
    torch.manual_seed(5)
    wanted = by_transformers(folder, PROMPT, 11, do_sample=True, top_k=0, **settings)
    got = minitron.generate(str(folder), PROMPT, max_new_tokens=11, seed=5, **settings)
    assert got == wanted


def test_seeds_distinguish_samples_and_greedy_needs_none(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def sampled(seed: int, temperature: float) -> str:
        return minitron.generate(
            str(folder), PROMPT, max_new_tokens=9, temperature=temperature, seed=seed
        )

    assert sampled(1, 1.5) == sampled(1, 1.5) != sampled(2, 1.5)
    assert not caplog.messages
    assert sampled(1, 0.0) == sampled(2, 0.0)
    assert set(caplog.messages) == {
        "--seed has no effect at --temperature 0, which takes the most probable token"
    }


def test_almost_no_probability_leaves_the_likeliest_token(folder: Path) -> None:
    greedy = minitron.generate(str(folder), PROMPT, max_new_tokens=9)
    nucleus = minitron.generate(
        str(folder), PROMPT, max_new_tokens=9, temperature=1.0, top_p=1e-6, seed=8
    )
    assert nucleus == greedy


@pytest.mark.parametrize(
    "text",
    [
        " was漢\n of é",
        "\n",
        " 😀",
        " spaces",
    ],
)
def test_pieces_join_to_the_text_and_none_holds_half_a_character(text: str) -> None:
    tokenizer = zoo_tokenizer()
    prompt = tokenizer.encode("It", add_special_tokens=False)
    ids = tokenizer.encode("It" + text, add_special_tokens=False)
    assert ids[: len(prompt)] == prompt
    pieces = streamed(reciting_model([*ids, 3], VOCABULARY), tokenizer, "It", len(ids) + 5)
    assert "".join(pieces) == text
    assert all(piece and "\ufffd" not in piece for piece in pieces)


def test_text_comes_piece_by_piece() -> None:
    tokenizer = zoo_tokenizer()
    ids = tokenizer.encode("It was the best of times", add_special_tokens=False)
    pieces = streamed(reciting_model([*ids, 3], VOCABULARY), tokenizer, "It", 40)
    assert pieces == [" was", " the", " best", " of", " times"]


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ("▁was ▁the ▁best", " was the best"),
        ("<0x0A> ▁the ▁times", "\n the times"),
        ("▁was <0xE6> <0xBC> <0xA2> ▁the <0x0A>", " was漢 the\n"),
        ("<0xC3> <0xA9> ▁of", "é of"),
    ],
)
def test_a_tokenizer_that_drops_the_first_space_loses_none(pieces: str, text: str) -> None:
    tokenizer = spaced_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(["▁It", *pieces.split()])
    assert tokenizer.decode(ids) == "It" + text
    assert tokenizer.decode(ids[1:]) == text.removeprefix(" ")
    got = streamed(reciting_model([*ids, 3], len(tokenizer)), tokenizer, "It", 30)
    assert "".join(got) == text


def test_bytes_that_never_become_a_character_come_at_the_end() -> None:
    tokenizer = spaced_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(["▁It", "▁was", "<0xE6>", "<0xBC>"])
    got = streamed(reciting_model([*ids, 3], len(tokenizer)), tokenizer, "It", 30)
    assert got == [" was", "\ufffd\ufffd"]


def test_it_ends_at_the_end_of_text_or_after_so_many_tokens() -> None:
    tokenizer = zoo_tokenizer()
    ids = tokenizer.encode("It was the best of times", add_special_tokens=False)
    model = reciting_model([*ids, 3, 4, 5], VOCABULARY)
    assert "".join(streamed(model, tokenizer, "It", 50)) == " was the best of times"
    assert "".join(streamed(model, tokenizer, "It", 3)) == " was the best"


def test_an_empty_prompt_begins_as_a_text_does() -> None:
    tokenizer = zoo_tokenizer()
    assert tokenizer.bos_token_id == 2
    ids = tokenizer.encode("It was", add_special_tokens=False)
    model = reciting_model([2, *ids, 3], VOCABULARY)
    assert "".join(streamed(model, tokenizer, "", 9)) == "It was"


def test_beyond_the_context_nothing_is_logged_amid_the_text(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    edit_config(copy, max_position_embeddings=13, eos_token_id=None)
    stopping = logging.getLogger("transformers.generation.stopping_criteria")
    stopping.addHandler(caplog.handler)
    try:
        minitron.generate(str(copy), "It was", max_new_tokens=20)
    finally:
        stopping.removeHandler(caplog.handler)
    assert "may predict worse beyond its context of 13 tokens" in caplog.text
    assert "reminder" not in caplog.text


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tiny_folder(tmp_path / "model")
    for file in zoo()["tiny"].glob("tokenizer*"):
        shutil.copy(file, path)
    with pytest.raises(TokenizerError, match=r"gives id \d+, outside .* vocabulary of 101: it be"):
        minitron.generate(str(path), PROMPT)


@pytest.mark.parametrize("end", [[3, 2], None])
def test_a_model_may_have_several_ends_or_none(end: list[int] | None, tmp_path: Path) -> None:
    tokenizer = zoo_tokenizer()
    ids = tokenizer.encode("It was the best", add_special_tokens=False)
    path = tmp_path / "model"
    reciting_model([*ids, 2, 1], VOCABULARY).save_pretrained(path)
    tokenizer.save_pretrained(path)
    edit_config(path, eos_token_id=end)
    (path / "generation_config.json").unlink()
    pieces = minitron.generate(str(path), "It", max_new_tokens=4)
    assert pieces == " was the best"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens is 0: it must be at least 1"),
        ({"max_new_tokens": -3}, "--max-new-tokens is -3: it must be at least 1"),
        ({"temperature": -0.5}, "--temperature is -0.5: it must be at least 0"),
        ({"temperature": float("nan")}, "--temperature is nan: it must be at least 0 and finite"),
        ({"temperature": float("inf")}, "--temperature is inf: it must be at least 0 and finite"),
        ({"top_p": 0.0}, "--top-p is 0: it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "--top-p is 1.5: it must be above 0 and at most 1"),
        ({"top_p": float("nan")}, "--top-p is nan: it must be above 0 and at most 1"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused_before_the_model_is_opened(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        minitron.generate("no-such-model", PROMPT, **settings)


def test_a_damaged_generation_config_is_a_mistake(tmp_path: Path, folder: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    (copy / "generation_config.json").write_text("{")
    with pytest.raises(SourceError, match="generation_config.json is not JSON .*mend or"):
        minitron.generate(str(copy), PROMPT)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("output_hidden_states", "x"),
        ("top_k", "x"),
        ("num_beams", 4),
        ("repetition_penalty", -1),
        ("stop_strings", ["x"]),
        ("bad_words_ids", [1]),
        ("prefill_chunk_size", [1]),
    ],
)
def test_a_setting_of_the_model_that_fails_is_named_in_one_line(
    folder: Path, setting: str, value: Any, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    path = copy / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), setting: value}))
    with pytest.raises(SourceError, match=f"mend or remove {setting}"):
        minitron.generate(str(copy), PROMPT, max_new_tokens=2)
