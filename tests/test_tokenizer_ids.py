"""A tokenizer gives the ids of its tokenizer.json, whatever class transformers makes of it."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaTokenizer, Qwen2Tokenizer

import minitron
from minitron.errors import TokenizerError
from minitron.publish.publishable import check_publishable
from minitron.sources.loading import load_tokenizer
from minitron.sources.opening import open_source, zoo
from minitron.text.tokenizer_ids import CODE_FILE, SAMPLES
from tests.tiny import FAMILIES, tiny_config, tiny_folder

TEXTS = [f"It was the best of times, it was the worst of times. {SAMPLES[0]}"] * 20
SPECIAL = ["<unk>", "<s>", "</s>"]


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def metaspace() -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL + fallback, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def words() -> Tokenizer:
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(
        TEXTS, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    )
    return made


KINDS = {"byte level": byte_level, "metaspace": metaspace, "words": words}
CLASSES = (None, "PreTrainedTokenizerFast", "LlamaTokenizerFast", "Qwen2Tokenizer")


def folder_of(
    path: Path, family: str, tokenizer: Tokenizer, named: str | None, **sizes: int
) -> Path:
    """A config and a tokenizer, without weights."""
    tiny_config(family, **sizes).save_pretrained(path)
    tokenizer.save(str(path / "tokenizer.json"))
    if named is not None:
        (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_file_in_every_family_and_class(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    for family in FAMILIES:
        for named in CLASSES:
            folder = folder_of(tmp_path / f"{family}-{named}", family, tokenizer, named)
            opened = load_tokenizer(open_source(str(folder)))
            for text in (*SAMPLES, "It was 1234", "   three", "HELLO\n"):
                expected = tokenizer.encode(text, add_special_tokens=False).ids
                ids = opened(text, add_special_tokens=False)["input_ids"]
                assert ids == expected, (family, named, text)


def agreeing(kind: type[LlamaTokenizer] | type[Qwen2Tokenizer]) -> Tokenizer:
    """What a class rebuilds of a vocabulary, so that file and class agree."""
    made = metaspace() if kind is LlamaTokenizer else byte_level()
    model = json.loads(made.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    rebuilt: Tokenizer = kind(vocab=model["vocab"], merges=merges).backend_tokenizer
    return rebuilt


# A tokenizer.json, and the class that tokenizer_config.json names beside it.
WRITTEN = {
    "bytes under Llama": (byte_level, "LlamaTokenizerFast"),
    "sentencepiece under Llama": (metaspace, "LlamaTokenizer"),
    "bytes under Qwen2": (byte_level, "Qwen2Tokenizer"),
    "sentencepiece under Qwen2": (metaspace, "Qwen2TokenizerFast"),
    "words under no class": (words, None),
}


def whole_folder(path: Path, family: str, tokenizer: Tokenizer, named: str | None) -> Path:
    """The same with weights."""
    size = tokenizer.get_vocab_size()
    tiny_folder(path, family, vocab_size=size)
    return folder_of(path, family, tokenizer, named, vocab_size=size)


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("family", FAMILIES)
def test_auto_tokenizer_gives_the_ids_of_the_file_for_what_is_written(
    family: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, named = WRITTEN[kind]
    tokenizer, once, twice = make(), tmp_path / "once", tmp_path / "twice"
    source = whole_folder(tmp_path / "source", family, tokenizer, named)
    minitron.convert(str(source), str(once))
    caplog.clear()
    minitron.prune(str(once), str(twice), hidden_size=36, scores="magnitude")
    assert not [line for line in caplog.messages if "AutoTokenizer" in line]
    for folder in (once, twice):
        for trusted in (None, True):
            opened = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
            for text in SAMPLES:
                ids = tokenizer.encode(text).ids
                assert opened(text)["input_ids"] == ids, (folder.name, trusted, text)
                assert opened.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)
        assert (CODE_FILE in check_publishable(folder)) == (family == "qwen2")


@pytest.mark.parametrize(
    ("family", "kind", "named"),
    [
        ("llama", LlamaTokenizer, "LlamaTokenizerFast"),
        ("mistral", LlamaTokenizer, "LlamaTokenizer"),
        ("mistral", Qwen2Tokenizer, "LlamaTokenizer"),
        ("nemotron", Qwen2Tokenizer, "LlamaTokenizer"),
        ("nemotron", Qwen2Tokenizer, None),
        ("qwen2", Qwen2Tokenizer, "LlamaTokenizerFast"),
        ("qwen2", Qwen2Tokenizer, None),
        ("qwen3", Qwen2Tokenizer, "Qwen2Tokenizer"),
        ("llama", Qwen2Tokenizer, "PreTrainedTokenizerFast"),
    ],
)
def test_files_with_which_auto_tokenizer_gives_these_ids_stay_byte_for_byte(
    family: str,
    kind: type[LlamaTokenizer] | type[Qwen2Tokenizer],
    named: str | None,
    tmp_path: Path,
) -> None:
    source = whole_folder(tmp_path / "source", family, agreeing(kind), named)
    minitron.convert(str(source), str(tmp_path / "out"))
    names = {path.name for path in source.glob("tokenizer*")}
    assert {path.name for path in (tmp_path / "out").glob("tokenizer*")} == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_what_a_class_brings_beside_its_ids_is_written(family: str, tmp_path: Path) -> None:
    source = whole_folder(tmp_path / "source", family, byte_level(), "LlamaTokenizerFast")
    file = source / "tokenizer_config.json"
    stated = {"tokenizer_class": "LlamaTokenizerFast", "pad_token": "<unk>", "legacy": True}
    file.write_text(json.dumps(stated))
    minitron.convert(str(source), str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / file.name).read_text())
    brought = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    assert written == {
        **stated,
        **(brought if family != "qwen2" else {}),  # transformers makes a Qwen2Tokenizer of it
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left" if family != "qwen2" else "right",
        **(
            {"auto_map": {"AutoTokenizer": ["tokenizer_json.TokenizerJson"] * 2}}
            if family == "qwen2"
            else {}
        ),
    }


def test_a_folder_that_auto_tokenizer_still_opens_with_other_ids_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = whole_folder(tmp_path / "source", "qwen2", byte_level(), None)
    monkeypatch.setattr(
        "minitron.records.folder_writer.following_settings",
        lambda *_: [{"tokenizer_class": "Qwen2Tokenizer"}],
    )
    minitron.convert(str(source), str(tmp_path / "out"))
    (line,) = [line for line in caplog.messages if "for the new folder" in line]
    assert line.endswith("open it with PreTrainedTokenizerFast.from_pretrained")


def test_text_comes_back_with_its_blanks_and_the_class_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_folder(tmp_path / "m", "llama", vocab_size=4099)
    for file in zoo()["tiny"].glob("tokenizer*"):
        shutil.copy(file, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "LlamaTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer(open_source(str(folder)))
    (line,) = [line for line in caplog.messages if "AutoTokenizer" in line]
    assert "makes a LlamaTokenizer that gives other ids than its tokenizer.json" in line
    ids = tokenizer("It was the best of times")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "It was the best of times"
    assert minitron.generate(str(folder), "It was", max_new_tokens=2)


def test_a_tokenizer_that_cannot_be_opened_with_its_own_ids_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.text.tokenizer_ids._agree", lambda *_: False)
    folder = folder_of(tmp_path / "m", "qwen2", words(), None)
    with pytest.raises(TokenizerError, match=r"makes a Qwen2Tokenizer of its tokenizer.json that"):
        load_tokenizer(open_source(str(folder)))


def test_a_tokenizer_that_follows_its_file_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.text.tokenizer_ids.Tokenizer", None)
    folder = folder_of(tmp_path / "m", "llama", byte_level(), "PreTrainedTokenizerFast")
    assert load_tokenizer(open_source(str(folder)))


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("tokenizer.json", "model", {"type": "none of them"}),
        ("tokenizer.json", "post_processor", "x"),
        ("tokenizer_config.json", "eos_token", 17),
    ],
)
@pytest.mark.parametrize("verb", ["prune", "convert"])
def test_a_folder_with_a_damaged_tokenizer_is_refused_before_anything_is_written(
    verb: str, file: str, key: str, value: object, tmp_path: Path
) -> None:
    source = tmp_path / "damaged"
    shutil.copytree(zoo()["tiny-quarter"], source)
    settings = json.loads((source / file).read_text())
    (source / file).write_text(json.dumps({**settings, key: value}))
    wished = {"hidden_size": 64, "scores": "magnitude"} if verb == "prune" else {}
    with pytest.raises(TokenizerError, match="damaged: its tokenizer"):
        getattr(minitron, verb)(str(source), str(tmp_path / "out"), **wished)
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_a_tokenizer_that_is_code_is_copied_and_not_run(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    byte_level().save(str(source / "tokenizer.json"))
    config = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", None]}}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    minitron.convert(str(source), str(tmp_path / "out"))
    copied = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert copied["auto_map"] == config["auto_map"]
