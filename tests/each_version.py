"""The main steps on small data, with the lowest and with the newest versions that setup.cfg allows.

CI runs this file by its name, in one environment with the lowest versions and one with the newest.
With the pinned versions each step has its own tests.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

import minitron
from minitron.candidates.decode_step import Conditions, DecodeStep, random_model
from minitron.sources.loading import load_model, load_tokenizer
from minitron.sources.opening import open_source
from minitron.verbs import quickstart as first_run
from modeling_nemotron import NemotronForCausalLM
from tests.tiny import FAMILIES, tiny_config, tiny_folder, tiny_model, weights_of

PROMPT = "It was the best of times, it was the worst of"
TEACHER_LOSS = 3.92  # nats per token, on text that it generates
NEAR = 0.01  # every processor and version generates the same text


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded teacher pruned, and the pruned model distilled from it."""
    root = tmp_path_factory.mktemp("steps")
    ids = np.random.default_rng(0).integers(5, 4000, (8, 32))
    np.save(root / "ids.npy", ids)
    tokenizer = load_tokenizer(open_source("tiny"))
    documents = [str(tokenizer.decode(row)) for row in ids.tolist()] * 4
    pq.write_table(pa.table({"text": documents}), root / "text.parquet")
    minitron.prune(
        *("tiny", str(root / "pruned")),
        hidden_size=160,
        intermediate_size=608,
        num_hidden_layers=3,
        corpus=str(root / "text.parquet"),
        samples=4,
        seq_len=32,
    )
    minitron.distill(
        *(str(root / "pruned"), str(root / "distilled")),
        teacher="tiny",
        corpus=str(root / "ids.npy"),
        steps=4,
        batch_size=4,
        learning_rate=1e-3,
        autocast="float32",
    )
    return root


def test_a_distilled_pruning_is_nearer_to_its_teacher(folders: Path) -> None:
    ids = torch.from_numpy(np.load(folders / "ids.npy"))[:4]

    def predicted(name: str) -> torch.Tensor:
        source = name if name == "tiny" else str(folders / name)
        with torch.no_grad():
            return load_model(open_source(source), dtype=torch.float32)(ids).logits.log_softmax(-1)

    teacher, pruned, distilled = map(predicted, ("tiny", "pruned", "distilled"))
    distance = [
        torch.nn.functional.kl_div(student, teacher, log_target=True, reduction="sum")
        for student in (pruned, distilled)
    ]
    assert distance[1] < distance[0]


def test_our_class_and_transformers_generate_the_same_cached_or_not(folders: Path) -> None:
    ids = load_tokenizer(open_source("tiny"))(PROMPT, return_tensors="pt").input_ids
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    made = [
        model_class.from_pretrained(folders / "distilled", dtype=torch.float32).generate(
            ids, generation_config=GenerationConfig(**options, use_cache=is_cached)
        )
        for model_class in (NemotronForCausalLM, AutoModelForCausalLM)
        for is_cached in (True, False)
    ]
    assert made[0].shape[1] == ids.shape[1] + 24
    assert all(torch.equal(each, made[0]) for each in made[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_each_family_adds_to_its_cache(family: str) -> None:
    config = tiny_config(family).to_dict()
    conditions = Conditions("cpu", torch.float32, batch=2, context=7)
    with torch.inference_mode():
        step = DecodeStep(random_model(config, conditions), conditions)
        step.whole()
    assert all(states.shape == (2, 1, 42) for states, _ in step._calls)
    model, ids = tiny_model(family), torch.arange(5, 14)[None]
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    cached, whole = (
        model.generate(ids, generation_config=GenerationConfig(**options, use_cache=is_cached))
        for is_cached in (True, False)
    )
    assert torch.equal(cached, whole)


@pytest.mark.parametrize("to", ["hub", "nemo", "nemo2"])
def test_a_format_gives_the_same_weights_back(to: str, folders: Path, tmp_path: Path) -> None:
    name = tmp_path / ("there.nemo" if to == "nemo" else "there")
    there: Any = minitron.convert(str(folders / "distilled"), str(name), to=to)
    back = minitron.convert(str(there), str(tmp_path / "back"))
    before, after = weights_of(folders / "distilled"), weights_of(Path(str(back)))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert minitron.generate(str(back), PROMPT, max_new_tokens=8)


@pytest.mark.parametrize("to", ["trtllm", "onnx"])
def test_an_engines_format_is_written(to: str, folders: Path, tmp_path: Path) -> None:
    source = folders / "distilled"
    if to == "onnx":  # six layers take half a minute to trace
        source = tiny_folder(tmp_path / "source", num_hidden_layers=1)
    out = minitron.convert(str(source), str(tmp_path / "out"), to=to)
    weights = "rank0.safetensors" if to == "trtllm" else "model.onnx"
    assert {"config.json", weights} <= {path.name for path in Path(str(out)).iterdir()}


def test_the_space_says_what_generate_says(folders: Path) -> None:
    from minitron.space.jobs.decoding import generate_tokens
    from minitron.space.jobs.request import Settings
    from minitron.space.jobs.semaphore import FairSemaphore

    source = open_source(str(folders / "distilled"))
    model, tokenizer = load_model(source, dtype=torch.float32), load_tokenizer(source)
    ids = tokenizer(PROMPT)["input_ids"]
    loaded: Any = type("Loaded", (), {"model": model, "end_tokens": frozenset()})()
    stop: Any = type("Stop", (), {"is_set": False})()
    settings: Any = Settings(max_new_tokens=9, temperature=0.0)
    tokens = generate_tokens(loaded, ids, settings, FairSemaphore(1), stop)
    found = [token.id for token in tokens]
    options = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    wanted = model.generate(torch.tensor([ids]), generation_config=GenerationConfig(**options))
    assert found == wanted[0, len(ids) :].tolist()


def test_quickstarts_table_has_the_reconstructed_student_ahead_of_importance_and_of_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("CALIBRATION", 8), ("TRAINING", 24), ("HELD_OUT", 64)):
        monkeypatch.setattr(first_run, name, count)
    begun = time.monotonic()
    teacher, fitted, importance, random = minitron.quickstart(str(tmp_path / "half")).rows
    print(f"\nsmall quickstart: {time.monotonic() - begun:.0f} s, {teacher}")
    assert teacher.pruned.loss == pytest.approx(TEACHER_LOSS, abs=NEAR)
    assert fitted.pruned.loss < importance.pruned.loss - 0.2
    assert fitted.distilled.loss < importance.distilled.loss
    assert importance.pruned.loss < random.pruned.loss - 0.3
    assert importance.distilled.loss < random.distilled.loss
