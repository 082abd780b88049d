"""Loss, perplexity and bits per byte are those of a naive computation, token by token."""

import errno
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import minitron
from minitron import cli
from minitron.errors import CorpusError, SourceError, TargetError, TokenizerError
from minitron.evaluation.loss import Evaluation, TextLoss, evaluate_text
from minitron.printing import readable
from minitron.sources.opening import zoo
from minitron.text.corpus import UNCOUNTED, held_out_ids, held_out_text
from tests.tiny import tiny_folder, tiny_model, write_text, zoo_tokenizer

DOCUMENTS = ["It was the best of times,", "it was\nthe wörst of 漢字", "x"]
VOCABULARY = 4099  # a little more than the tokenizer's
EOS = 3
WHOLE = -1  # a window that takes the stream exactly


def with_tokenizer(folder: Path) -> Path:
    """The embedded teacher's tokenizer put beside a model."""
    for path in zoo()["tiny"].glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module", params=["nemotron", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "model"
    return with_tokenizer(tiny_folder(path, request.param, vocab_size=VOCABULARY))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_text(tmp_path_factory.mktemp("text") / "a.jsonl", DOCUMENTS))


def packed() -> list[int]:
    """The text as one stream: a separator before each document, and one at the end."""
    tokenizer = zoo_tokenizer()
    stream = [EOS]
    for document in DOCUMENTS:
        stream += [*tokenizer.encode(document, add_special_tokens=False), EOS]
    return stream


def naive_nats(folder: Path, windows: list[list[int]]) -> tuple[float, int]:
    """Nats and number of the tokens of each window that its predecessors are to predict."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    nats, tokens = 0.0, 0
    for window in windows:
        for end in range(1, len(window)):
            if window[end] != EOS:
                with torch.no_grad():
                    logits = model(torch.tensor([window[:end]])).logits[0, -1]
                nats -= float(logits.double().log_softmax(-1)[window[end]])
                tokens += 1
    return nats, tokens


@pytest.mark.parametrize("seq_len", [1, 7, WHOLE, 60])
def test_text_scores_what_a_naive_computation_gives(folder: Path, text: str, seq_len: int) -> None:
    stream = packed()
    seq_len = len(stream) - 1 if seq_len == WHOLE else seq_len
    windows = [stream[start : start + seq_len + 1] for start in range(0, len(stream) - 1, seq_len)]
    nats, tokens = naive_nats(folder, windows)
    assert tokens == len(stream) - 1 - len(DOCUMENTS)
    scored = minitron.evaluate(str(folder), corpus=text, seq_len=seq_len)
    assert scored.tokens == tokens
    assert scored.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert scored.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    size = sum(len(document.encode()) for document in DOCUMENTS)
    assert scored.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)


STRIDES = [(1, 1), (7, 1), (7, 3), (7, 6), (10, 4), (60, 20)]


@pytest.mark.parametrize(("seq_len", "stride"), STRIDES)
def test_sliding_windows_score_each_token_once_from_a_long_context(
    folder: Path, text: str, seq_len: int, stride: int
) -> None:
    stream = packed()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    nats, tokens, begin = 0.0, 0, 0
    for place in range(1, len(stream)):
        if place > begin + seq_len:
            begin += stride
        seen = stream[begin:place]
        assert min(place - 1, seq_len - stride) < len(seen) <= seq_len
        if stream[place] != EOS:
            with torch.no_grad():
                logits = model(torch.tensor([seen])).logits[0, -1].double()
            nats -= float(logits.log_softmax(-1)[stream[place]])
            tokens += 1
    scored = minitron.evaluate(str(folder), corpus=text, seq_len=seq_len, stride=stride)
    assert scored.tokens == tokens == len(stream) - 1 - len(DOCUMENTS)
    assert scored.loss == pytest.approx(nats / tokens, rel=1e-5)
    size = sum(len(document.encode()) for document in DOCUMENTS)
    assert scored.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)


@pytest.mark.parametrize(("seq_len", "stride"), STRIDES)
def test_sliding_windows_count_every_target_in_one_window_only(
    text: str, seq_len: int, stride: int
) -> None:
    held_out = held_out_text(text, zoo_tokenizer(), seq_len, stride)
    counted = sorted(
        int(target)
        for window in held_out.targets
        for target in window.flatten()
        if target != UNCOUNTED
    )
    assert counted == sorted(token for token in packed()[1:] if token != EOS)
    assert all(window.shape[1] <= seq_len for window in held_out.inputs)


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_leaves_tokens_out_is_refused(folder: Path, text: str, stride: int) -> None:
    with pytest.raises(TargetError, match=f"--stride is {stride}: it must be 1 to 8, the --seq-l"):
        minitron.evaluate(str(folder), corpus=text, seq_len=8, stride=stride)


def test_a_stride_for_ids_is_refused(folder: Path) -> None:
    with pytest.raises(TargetError, match="--stride is for --corpus with text: rows of ids stand"):
        minitron.evaluate(str(folder), corpus="a.npy", stride=4)


def test_nothing_to_evaluate_on_is_refused(folder: Path) -> None:
    with pytest.raises(TargetError, match="nothing to evaluate on: give --corpus, --tasks or --p"):
        minitron.evaluate(str(folder))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"limit": 0}, "--limit is 0: it must be at least 1"),
        ({"batch_size": 0}, "--batch-size is 0: it must be at least 1"),
        ({"num_fewshot": -1}, "--num-fewshot is -1: it must be at least 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(option: dict[str, int], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        minitron.evaluate("tiny", tasks="hellaswag", **option)


def test_ids_score_what_a_naive_computation_gives(folder: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(5, VOCABULARY, size=(3, 11))
    np.save(tmp_path / "a.npy", rows)
    nats, tokens = naive_nats(folder, rows.tolist())
    scored = minitron.evaluate(str(folder), corpus=str(tmp_path / "a.npy"), seq_len=20)
    assert scored.tokens == tokens == 3 * 10
    assert scored.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert scored.bits_per_byte is None


def test_longer_rows_of_ids_are_cut_to_the_context(folder: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).integers(5, VOCABULARY, size=(2, 11))
    np.save(tmp_path / "a.npy", rows)
    nats, tokens = naive_nats(folder, rows[:, :6].tolist())
    scored = minitron.evaluate(str(folder), corpus=str(tmp_path / "a.npy"), seq_len=5)
    assert scored.tokens == tokens == 2 * 5
    assert scored.loss == pytest.approx(nats / tokens, rel=1e-5)


@pytest.mark.parametrize("seq_len", [1, 4, WHOLE, 60])
def test_every_token_is_predicted_exactly_once_from_the_one_before_it(
    text: str, seq_len: int
) -> None:
    stream = packed()
    seq_len = len(stream) - 1 if seq_len == WHOLE else seq_len
    held_out = held_out_text(text, zoo_tokenizer(), seq_len)
    inputs = [int(i) for window in held_out.inputs for i in window.flatten()]
    targets = [int(i) for window in held_out.targets for i in window.flatten()]
    assert inputs == stream[:-1]
    assert targets == [-100 if token == EOS else token for token in stream[1:]]
    assert all(window.shape[1] <= seq_len for window in held_out.inputs)
    assert held_out.bytes == sum(len(document.encode()) for document in DOCUMENTS)


def test_a_model_that_knows_nothing_scores_the_size_of_its_vocabulary(text: str) -> None:
    model = tiny_model("qwen3", vocab_size=VOCABULARY)
    torch.nn.init.zeros_(model.lm_head.weight)
    scored = evaluate_text(model, held_out_text(text, zoo_tokenizer(), 8))
    assert scored.loss == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert scored.perplexity == pytest.approx(VOCABULARY, rel=1e-5)
    size = sum(len(document.encode()) for document in DOCUMENTS)
    assert scored.bits_per_byte == pytest.approx(scored.tokens * math.log2(VOCABULARY) / size)


@pytest.mark.parametrize(("batch", "logits"), [(1, 512), (14, 3), (8192, 1)])
def test_how_much_is_computed_at_once_changes_nothing(
    text: str, batch: int, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("nemotron-tied", vocab_size=VOCABULARY)
    held_out = held_out_text(text, zoo_tokenizer(), 7)
    whole = evaluate_text(model, held_out)
    monkeypatch.setattr("minitron.evaluation.loss._BATCH_TOKENS", batch)
    monkeypatch.setattr("minitron.evaluation.loss._LOGITS_TOKENS", logits)
    parts = evaluate_text(model, held_out)
    assert parts.tokens == whole.tokens
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)


def test_it_can_compute_in_another_precision(folder: Path, text: str) -> None:
    exact = minitron.evaluate(str(folder), corpus=text, seq_len=16)
    rounded = minitron.evaluate(str(folder), corpus=text, seq_len=16, dtype="bfloat16")
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=0.05)


def test_json_has_the_promised_keys(folder: Path, text: str) -> None:
    record = minitron.evaluate(str(folder), corpus=text).to_json()
    assert set(record) == {"loss", "perplexity", "bits_per_byte", "tokens", "tasks"}
    assert record["tasks"] == {}


def test_a_perplexity_beyond_floating_point_is_infinite_and_null_in_json() -> None:
    evaluation = Evaluation(TextLoss(loss=800.0, tokens=1, bits_per_byte=None))
    assert evaluation.perplexity == math.inf
    assert evaluation.to_json()["perplexity"] is None


def test_a_loss_that_is_no_number_is_refused(text: str) -> None:
    model = tiny_model("llama", vocab_size=VOCABULARY)
    with torch.no_grad():
        model.lm_head.weight *= 1e38
        model.lm_head.weight *= 10
    with pytest.raises(SourceError, match="the model has a loss of nan in float32: compute with"):
        evaluate_text(model, held_out_text(text, zoo_tokenizer(), 16))


@pytest.mark.parametrize("content", ["", "  \n "])
def test_text_that_holds_nothing_to_predict_is_refused(
    folder: Path, content: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(CorpusError, match="a.txt holds no text: there is nothing to predict"):
        minitron.evaluate(str(folder), corpus=str(tmp_path / "a.txt"))


def test_rows_of_one_id_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((5, 1), int))
    with pytest.raises(CorpusError, match="a.npy holds sequences of one token"):
        held_out_ids(str(tmp_path / "a.npy"), 8)


@pytest.mark.parametrize("column", [0, 2])
def test_an_id_outside_the_vocabulary_is_named(folder: Path, column: int, tmp_path: Path) -> None:
    rows = np.full((2, 3), 5)
    rows[1, column] = VOCABULARY
    np.save(tmp_path / "a.npy", rows)
    with pytest.raises(CorpusError, match=rf"token id {VOCABULARY}, outside .* of {VOCABULARY}"):
        minitron.evaluate(str(folder), corpus=str(tmp_path / "a.npy"))


def test_text_needs_a_tokenizer(text: str, tmp_path: Path) -> None:
    bare = tiny_folder(tmp_path / "bare")
    with pytest.raises(TokenizerError, match=rf"{bare} has no tokenizer files: add tokenizer.json"):
        minitron.evaluate(str(bare), corpus=text)


def test_separators_of_another_tokenizer_are_context_only(text: str) -> None:
    class Framed:
        """A tokenizer that begins every text with 2 and ends it, when asked to pack, with 9."""

        bos_token_id, eos_token_id = 2, 9

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[2, *map(len, text.split())] for text in texts]}

    held_out = held_out_text(text, Framed(), 100)  # type: ignore[arg-type]  # a fake
    assert held_out.inputs[0].tolist() == [
        [9, 2, 2, 3, 3, 4, 2, 6, 9, 2, 2, 3, 3, 5, 2, 2, 9, 2, 1]
    ]
    counted = [int(target) for target in held_out.targets[0][0] if target != -100]
    assert counted == [3, 3, 4, 6, 3, 3, 5, 1]


def test_a_result_is_shown_and_the_record_kept_where_it_cannot_be_written(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = tmp_path / "made"
    minitron.convert(str(folder), str(made))
    before = (made / "minitron.json").read_bytes()
    np.save(tmp_path / "ids.npy", np.arange(40).reshape(2, 20))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", str(made), "--corpus", str(tmp_path / "ids.npy"), "--record"])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert "perplexity" in printed.out
    assert "minitron.json cannot be written: No space left" in printed.err
    assert (made / "minitron.json").read_bytes() == before


def test_a_loss_of_a_few_tokens_is_not_given_without_a_word(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for samples, warnings in ((30, 0), (1, 1)):
        caplog.clear()
        name = str(tmp_path / "ids.npy")
        np.save(name, np.arange(samples * 20).reshape(samples, 20) % VOCABULARY)
        cli.main(["evaluate", str(folder), "--corpus", name])
        assert len([text for text in caplog.messages if "tokens to predict" in text]) == warnings
    assert f"{name} has 19 tokens to predict: " in caplog.text


def test_large_numbers_are_printed_with_separators() -> None:
    assert (readable(1234567), readable(1234567.0)) == ("1,234,567", "1,234,567.0000")


def test_an_embedded_model_is_not_recorded_into(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(40).reshape(2, 20))
    with pytest.raises(TargetError, match=r"tiny is an embedded model: minitron convert tiny COPY"):
        minitron.evaluate("tiny", corpus=str(tmp_path / "ids.npy"), record=True)
