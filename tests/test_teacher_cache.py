"""A teacher's cache holds what the teacher says, and serves no other text, teacher or distance."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import minitron
from minitron.cli import main
from minitron.errors import CorpusError, MinitronError, OutputError, SourceError
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source
from minitron.training.distillation import top_k_loss
from minitron.training.teacher_cache import open_teacher_cache
from minitron.verbs import teacher_cache as teacher_writing
from tests.tiny import FAMILIES, SIZES, tiny_folder, tiny_model, weights_of

SEQ_LEN, ROWS, K = 13, 11, 7


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_folder(root / "teacher", seed=1, dtype=torch.bfloat16)
    tiny_folder(root / "student", seed=2, hidden_size=30, num_hidden_layers=3)
    rng = np.random.default_rng(0)
    np.save(root / "text.npy", rng.integers(SIZES["vocab_size"], size=(ROWS, SEQ_LEN)))
    np.save(root / "other.npy", rng.integers(SIZES["vocab_size"], size=(ROWS, SEQ_LEN)))
    return root


def cached(folders: Path, out: Path, **settings: Any) -> Path:
    options = {"corpus": str(folders / "text.npy"), "batch_size": 3, "dtype": "bfloat16"}
    minitron.cache_teacher(str(folders / "teacher"), str(out), **{**options, **settings})
    return out


def distilled(folders: Path, out: Path, **settings: Any) -> list[float]:
    options = {"corpus": str(folders / "text.npy"), "steps": 6, "batch_size": 4}
    minitron.distill(str(folders / "student"), str(out), **{**options, **settings})
    lines = (out / "training.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def exact(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cached(folders, tmp_path_factory.mktemp("caches") / "exact")


@pytest.fixture(scope="module")
def likeliest(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cached(folders, tmp_path_factory.mktemp("caches") / "likeliest", top_k=K)


def test_training_from_the_exact_cache_is_training_beside_the_teacher(
    folders: Path, exact: Path, tmp_path: Path
) -> None:
    teacher = str(folders / "teacher")
    beside = distilled(folders, tmp_path / "beside", teacher=teacher, teacher_dtype="bfloat16")
    after = distilled(folders, tmp_path / "after", teacher_cache=str(exact))
    assert after == pytest.approx(beside, rel=1e-6)
    both = distilled(folders, tmp_path / "both", teacher=teacher, teacher_cache=str(exact))
    assert both == after
    for name, tensor in weights_of(tmp_path / "beside").items():
        torch.testing.assert_close(weights_of(tmp_path / "after")[name], tensor)


def test_a_cache_of_a_float32_teacher_is_within_bfloat16_of_it(
    folders: Path, tmp_path: Path
) -> None:
    cache = cached(folders, tmp_path / "cache", dtype="float32")
    settings = {"teacher": str(folders / "teacher"), "teacher_dtype": "float32"}
    beside = distilled(folders, tmp_path / "beside", **settings)
    after = distilled(folders, tmp_path / "after", teacher_cache=str(cache))
    assert after == pytest.approx(beside, rel=1e-2)
    assert after != beside


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_predicts_what_its_model_predicts(family: str, tmp_path: Path) -> None:
    tiny_folder(tmp_path / "teacher", family)
    ids = np.random.default_rng(1).integers(SIZES["vocab_size"], size=(5, 9))
    np.save(tmp_path / "text.npy", ids)
    cached(tmp_path, tmp_path / "cache", dtype="float32")
    teacher = open_teacher_cache(tmp_path / "cache").teacher("cpu")
    rows = torch.tensor([4, 0])
    predicted = teacher.predict(torch.from_numpy(ids[rows]), rows)
    model = load_model(open_source(str(tmp_path / "teacher")))
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids[rows])).logits[:, :-1].flatten(0, 1)
    products = predicted.hidden.float() @ predicted.head.T
    torch.testing.assert_close(predicted.logit_scale(products), wanted, rtol=0.02, atol=0.05)


def test_the_likeliest_tokens_are_those_of_capped_logits(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "teacher", "gemma2")
    ids = np.random.default_rng(1).integers(SIZES["vocab_size"], size=(2, 9))
    np.save(tmp_path / "text.npy", ids)
    cached(tmp_path, tmp_path / "cache", dtype="float32", top_k=K)
    predicted = (
        open_teacher_cache(tmp_path / "cache")
        .teacher("cpu")
        .predict(torch.from_numpy(ids), torch.arange(2))
    )
    model = load_model(open_source(str(tmp_path / "teacher")))
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids)).logits[:, :-1].flatten(0, 1).softmax(-1)
    torch.testing.assert_close(
        predicted.log_probabilities[:, :K].float().exp(),
        wanted.topk(K).values,
        rtol=0.01,
        atol=1e-3,
    )


def test_the_likeliest_tokens_are_kept_with_the_rest_as_one(folders: Path, likeliest: Path) -> None:
    ids = torch.from_numpy(np.load(folders / "text.npy")).long()
    rows = torch.tensor([10, 3])
    predicted = open_teacher_cache(likeliest).teacher("cpu").predict(ids[rows], rows)
    model = load_model(open_source(str(folders / "teacher")), dtype=torch.bfloat16)
    with torch.no_grad():
        hidden = model.model(ids[rows]).last_hidden_state[:, :-1].flatten(0, 1)
        wanted = (hidden.float() @ model.lm_head.weight.float().T).softmax(-1)
    top = wanted.topk(K)
    torch.testing.assert_close(
        predicted.log_probabilities[:, :K].float().exp(), top.values, rtol=0.01, atol=1e-3
    )
    assert torch.equal(predicted.ids.sort(1).values, top.indices.sort(1).values)
    rest = 1 - top.values.sum(1)
    torch.testing.assert_close(
        predicted.log_probabilities[:, K].float().exp(), rest, rtol=0.01, atol=1e-3
    )


def naive(student: torch.Tensor, ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """KL between distributions over k tokens and "any other"."""
    probabilities = student.softmax(-1)
    known = probabilities.gather(1, ids)
    q = torch.cat([known, 1 - known.sum(1, keepdim=True)], 1)
    return (kept * (kept.log() - q.log())).sum(1).mean()


def test_the_loss_on_the_likeliest_and_its_gradient_are_the_naive_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "minitron.training.distillation._CHUNK_LOGITS", 5 * 23
    )  # five tokens at once
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(12, 6, generator=generator, requires_grad=True)
    head = torch.randn(23, 6, generator=generator, requires_grad=True)
    ids = torch.stack([torch.randperm(23, generator=generator)[:4] for _ in range(12)])
    kept = torch.rand(12, 5, generator=generator).add(0.1)
    kept = kept / kept.sum(1, keepdim=True)
    labels = torch.randint(23, (12,), generator=generator)
    loss = top_k_loss(hidden, head, ids, kept.log(), labels, ce_weight=0.3)
    gradients = torch.autograd.grad(loss, (hidden, head))
    logits = hidden @ head.T
    wanted = naive(logits, ids, kept) + 0.3 * F.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, wanted)
    for gradient, expected in zip(
        gradients, torch.autograd.grad(wanted, (hidden, head)), strict=True
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_likeliest_tokens_that_the_student_lacks_are_left_out_of_both() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(12, 6, generator=generator, requires_grad=True)
    head = torch.randn(23, 6, generator=generator, requires_grad=True)
    ids = torch.stack([torch.randperm(23, generator=generator)[:4] for _ in range(12)])
    kept = torch.rand(12, 5, generator=generator).add(0.1)
    labels = torch.randint(19, (12,), generator=generator)
    is_ours = torch.cat([ids < 19, torch.ones(12, 1, dtype=torch.bool)], 1)
    assert not is_ours.all()
    loss = top_k_loss(hidden, head, ids, kept.log(), labels, ce_weight=0.3, rows=19)
    gradients = torch.autograd.grad(loss, (hidden, head))
    logits = (hidden @ head.T)[:, :19]
    rows = []
    for row in range(12):  # each with as many tokens as are left
        some, share = ids[row][is_ours[row, :4]], kept[row][is_ours[row]]
        rows.append(naive(logits[row : row + 1], some[None], (share / share.sum())[None]))
    wanted = torch.stack(rows).mean() + 0.3 * F.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, wanted)
    for gradient, expected in zip(
        gradients, torch.autograd.grad(wanted, (hidden, head)), strict=True
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert not gradients[1][19:].any()


def test_a_student_learns_from_the_likeliest(
    folders: Path, likeliest: Path, tmp_path: Path
) -> None:
    settings = {"steps": 40, "learning_rate": 1e-2, "teacher_cache": str(likeliest)}
    losses = distilled(folders, tmp_path / "out", **settings)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("top_k", [None, K])
def test_an_interrupted_cache_continues_to_the_bytes_of_an_unbroken_one(
    top_k: int | None, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_writing, "_SHARD_BYTES", 2000)
    unbroken = cached(folders, tmp_path / "unbroken", top_k=top_k)
    save, saved = teacher_writing._save, []

    def failing(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        if path.name == "shard-00002.safetensors":
            raise KeyboardInterrupt
        saved.append(path.name)
        save(path, tensors)

    monkeypatch.setattr(teacher_writing, "_save", failing)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        cached(folders, tmp_path / "broken", top_k=top_k)
    assert interrupted.value.__notes__ == ["the same command goes on from shard 2"]
    assert saved[-1] == "shard-00001.safetensors"
    with pytest.raises(OutputError, match="begun with batch_size 3, now 2"):
        cached(folders, tmp_path / "broken", top_k=top_k, batch_size=2)
    monkeypatch.setattr(teacher_writing, "_save", lambda *given: saved.append("") or save(*given))
    before = len(saved)
    broken = cached(folders, tmp_path / "broken", top_k=top_k)
    assert len(saved) - before < len(list(broken.glob("shard-*")))
    one, other = (
        {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
        for folder in (unbroken, broken)
    )
    assert len(one) > 3
    assert one == other
    assert not (tmp_path / "broken.partial").exists()


def test_a_cache_killed_while_it_was_described_is_begun_afresh(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(path: Path, _: object) -> None:
        path.write_text('{"sch')
        raise KeyboardInterrupt

    monkeypatch.setattr(teacher_writing, "write_json", cut_short)
    with pytest.raises(KeyboardInterrupt):
        cached(folders, tmp_path / "out")
    monkeypatch.undo()
    out = cached(folders, tmp_path / "out")
    assert open_teacher_cache(out).described["samples"] == ROWS
    assert not list(out.glob("partial*"))


def test_a_cache_begun_on_another_text_of_the_same_name_is_not_taken_up(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.npy"
    text.write_bytes((folders / "text.npy").read_bytes())

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(teacher_writing, "_hidden", stop)
    with pytest.raises(KeyboardInterrupt):
        cached(folders, tmp_path / "out", corpus=str(text))
    text.write_bytes((folders / "other.npy").read_bytes())
    with pytest.raises(OutputError, match=r"out\.partial was begun on another text or teacher"):
        cached(folders, tmp_path / "out", corpus=str(text))


def test_other_text_and_other_teachers_are_refused(
    folders: Path, exact: Path, tmp_path: Path
) -> None:
    use = {"teacher_cache": str(exact)}
    with pytest.raises(CorpusError, match=r"made of 11 sequences of 13 .* and these 11 of 13 of"):
        distilled(folders, tmp_path / "out", corpus=str(folders / "other.npy"), **use)
    with pytest.raises(CorpusError, match="these 11 of 12 of"):
        distilled(folders, tmp_path / "out", seq_len=12, **use)
    with pytest.raises(CorpusError, match="these 5 of 13 of"):
        distilled(folders, tmp_path / "out", samples=5, **use)
    tiny_folder(tmp_path / "other", seed=9, dtype=torch.bfloat16)
    with pytest.raises(SourceError, match=r"was made by .*teacher, whose weights .*other does not"):
        distilled(folders, tmp_path / "out", teacher=str(tmp_path / "other"), **use)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_the_cache_gives_length_and_samples_where_they_are_not_given(
    folders: Path, tmp_path: Path
) -> None:
    cache = cached(folders, tmp_path / "cache", seq_len=8, samples=6)
    distilled(folders, tmp_path / "out", teacher_cache=str(cache))
    record = json.loads((tmp_path / "out" / "minitron.json").read_text())
    assert record["training"]["corpus_tokens"] == 6 * 8
    assert record["teacher"]["name"] == str(folders / "teacher")


def test_text_that_the_teacher_sampled_comes_from_the_cache(folders: Path, tmp_path: Path) -> None:
    cache = cached(folders, tmp_path / "cache", corpus="self", samples=5, seq_len=9)
    distilled(folders, tmp_path / "out", corpus="self", teacher_cache=str(cache))
    record = json.loads((tmp_path / "out" / "minitron.json").read_text())
    assert record["training"]["corpus_digest"] == open_teacher_cache(cache).corpus.digest
    assert not (cache / "self.npy").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kind": "reverse_kl"}, "--kind reverse_kl at --temperature 1 needs all probabilities"),
        ({"temperature": 2.0}, "--kind forward_kl at --temperature 2 needs all"),
        ({"alpha": "dynamic"}, "--alpha dynamic needs the states between the teacher's layers"),
    ],
    ids=["kind", "temperature", "alpha"],
)
def test_what_the_cache_does_not_hold_is_refused(
    setting: dict[str, Any], message: str, folders: Path, likeliest: Path, tmp_path: Path
) -> None:
    with pytest.raises(MinitronError, match=message):
        distilled(folders, tmp_path / "out", teacher_cache=str(likeliest), **setting)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"top_k": 0}, "--top-k is 0"),
        ({"seed": -1}, "--seed is -1: it must be at least 0"),
        ({"top_k": 101}, "--top-k is 101, the vocabulary has 101 tokens: keep fewer"),
        ({"seq_len": 1}, "--seq-len is 1: it must be at least 2"),
        ({"corpus": "missing.npy"}, "missing.npy does not exist"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_written_down_is_refused(
    setting: dict[str, Any], message: str, folders: Path, tmp_path: Path
) -> None:
    with pytest.raises(MinitronError, match=message):
        cached(folders, tmp_path / "out", **setting)
    assert not list(tmp_path.iterdir())


def test_the_space_is_logged_first_and_refused_where_it_is_not_there(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    tokens = ROWS * (SEQ_LEN - 1)
    out = cached(folders, tmp_path / "out")
    needed = f"84 bytes for each of {tokens} tokens and 8.29 KiB of output embedding"
    assert needed in caplog.text
    (shard,) = out.glob("shard-*")
    assert 0 <= shard.stat().st_size - tokens * 84 < 200
    assert shard.stat().st_mode & 0o777 == 0o666 & ~current_umask()

    class Usage:
        free = tokens * 84

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage())
    with pytest.raises(OutputError, match=r"the cache takes .*, and .* has .* free: keep fewer"):
        cached(folders, tmp_path / "more")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_command_writes_it_and_distill_reads_it(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["--corpus", str(folders / "text.npy")]
    out, student = str(tmp_path / "says"), str(folders / "student")
    main(["teacher-cache", str(folders / "teacher"), out, *text, "--top-k", "5"])
    assert f"{out}: written" in capsys.readouterr().out
    taught = str(tmp_path / "taught")
    main(["distill", student, taught, "--teacher-cache", out, *text, "--steps", "2"])
    assert (tmp_path / "taught" / "model.safetensors").exists()


def test_a_tied_teacher_lends_its_embedding(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "teacher", "nemotron-tied")
    np.save(tmp_path / "text.npy", np.arange(24).reshape(2, 12))
    cached(tmp_path, tmp_path / "cache")
    head = weights_of(tmp_path / "cache")["head"]
    assert torch.equal(head, tiny_model("nemotron-tied").model.embed_tokens.weight)
