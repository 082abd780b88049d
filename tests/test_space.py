"""The Space without a page: who may be chosen, what is refused, and that answers are right."""

import math
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import minitron
from minitron.candidates.decode_step import Conditions
from minitron.candidates.latency import Corners, LatencyTable
from minitron.errors import MinitronError
from minitron.sources.opening import zoo
from minitron.space.jobs.catalog import Catalog, CatalogModel
from minitron.space.jobs.comparing import Column, ComparisonRequest, TextPart, compare
from minitron.space.jobs.decoding import StopSignal, TokenCheck
from minitron.space.jobs.measures import (
    PACKAGED,
    SAMPLES,
    SEQ_LEN,
    Measurements,
    Timings,
)
from minitron.space.jobs.models import LoadedModel, ModelCache, ModelKey
from minitron.space.jobs.preview import SIZES, Sizes, command, next_command, preview
from minitron.space.jobs.pruning import push_with_token
from minitron.space.jobs.request import (
    MAX_CHARACTERS,
    BusyError,
    Prompt,
    Settings,
    VisitorError,
)
from minitron.space.jobs.semaphore import FairSemaphore
from minitron.space.jobs.service import Service
from minitron.space.tabs.prune import least_percent
from minitron.space.ui.cards import (
    answer_cards,
    how_measured,
    lesson_card,
    preview_card,
    recipe_card,
    result_card,
)
from minitron.space.ui.html import byte_size, count, inline, percent, render

PROMPT = "It was the best of times,"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    return Service.create(Catalog.of(["tiny"]), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """A teacher and a student that was pruned from it."""
    place = tmp_path_factory.mktemp("pair")
    minitron.prune("tiny", str(place / "child"), num_hidden_layers=5, scores="magnitude")
    return Service.create(Catalog.of(["tiny", str(place / "child")]), place / "cache")


def decoded(loaded: LoadedModel, ids: list[int]) -> str:
    return str(loaded.tokenizer.decode(ids, skip_special_tokens=True))


def continuation(service: Service, **changed: object) -> str:
    settings = {"max_new_tokens": 12, "temperature": 0.0, "top_p": 1.0, "seed": 0, **changed}
    return service.generate("tiny", PROMPT, **settings)[0]


# Who may be chosen.


def test_the_whole_zoo_is_shown_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINITRON_SPACE_MODELS", raising=False)
    assert Catalog.read().names == ["tiny", "tiny-half", "tiny-quarter"]
    assert [model.teacher for model in Catalog.read().models] == [None, "tiny", "tiny"]


def test_models_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "MINITRON_SPACE_MODELS",
        "[{name: first, source: tiny}, {name: second, source: tiny, teacher: first}]",
    )
    catalog = Catalog.read()
    assert [(m.name, m.source, m.teacher) for m in catalog.models] == [
        ("first", "tiny", None),
        ("second", "tiny", "first"),
    ]


def test_models_are_read_from_a_file_beside_the_app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINITRON_SPACE_MODELS", raising=False)
    (tmp_path / "models.yaml").write_text("- {name: shown, source: tiny}\n")
    assert Catalog.read(tmp_path).names == ["shown"]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "- [",
        "[tiny, tiny]",
        "[]",
        "[{name: a, source: tiny, path: b}]",
        "[{name: a, source: tiny, teacher: nobody}]",
        "[{name: '../a', source: tiny}]",
        "missing.yaml",
    ],
)
def test_a_damaged_list_of_models_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINITRON_SPACE_MODELS", text)
    with pytest.raises(VisitorError):
        Catalog.read()


@pytest.mark.parametrize(
    "name", ["huge", "/etc/passwd", "../tiny", "nvidia/Minitron-8B-Base", 7, None]
)
def test_only_listed_names_can_be_chosen(name: object, service: Service) -> None:
    with pytest.raises(VisitorError, match="choose tiny"):
        service.generate(name, PROMPT, 4, 0.0, 1.0, 0)


# What is refused.


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -3),
        ("max_new_tokens", 2.5),
        ("max_new_tokens", 10**9),
        ("max_new_tokens", None),
        ("max_new_tokens", True),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_p", math.nan),
        ("seed", -1),
        ("seed", 2**40),
        ("seed", math.nan),
    ],
)
def test_a_setting_out_of_bounds_is_named(setting: str, value: object, service: Service) -> None:
    with pytest.raises(VisitorError, match=f"{setting} is"):
        continuation(service, **{setting: value})


@pytest.mark.parametrize("prompt", ["", "  \n ", "a\x00b", "a\x1b[2J", "a\ud800", 5, None])
def test_a_prompt_that_is_no_text_is_refused(prompt: object) -> None:
    with pytest.raises(VisitorError, match="the prompt"):
        Prompt.checked(prompt)


def test_a_long_prompt_is_shortened_with_a_notice() -> None:
    prompt = Prompt.checked("word " * 20_000)
    assert len(prompt.text) == MAX_CHARACTERS
    assert "100,000 characters" in prompt.notices[0]


def test_a_prompt_is_shortened_to_the_context_with_one_notice(service: Service) -> None:
    text, notices = service.generate("tiny", "word " * 20_000, 8, 0.0, 1.0, 0)
    assert text
    assert notices == ("The prompt is cut: only its last 504 tokens fit before the answer.",)
    html = answer_cards([Column(ModelKey("tiny"), notices=notices)])
    assert html.index(notices[0]) < html.index('class="mt-text"')  # where it is seen


@pytest.mark.parametrize(
    "sizes",
    [
        (0, None, None, None),
        (math.nan, None, None, None),
        (257, None, None, None),
        (None, None, 3, None),
        (None, None, None, -1),
        (None, 10.5, None, None),
    ],
)
def test_sizes_out_of_bounds_are_refused(sizes: tuple[float | None, ...], service: Service) -> None:
    with pytest.raises(MinitronError):
        service.plan("tiny", *sizes)


def test_pruning_nothing_is_refused(service: Service) -> None:
    with pytest.raises(VisitorError, match="nothing is pruned"):
        list(service.prune("tiny", None, None, None, None))


# That answers are right.


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.8, "seed": 3}, {"temperature": 1.3, "top_p": 0.7, "seed": 11}],
)
def test_a_text_is_that_of_minitron_generate(settings: dict[str, float], service: Service) -> None:
    expected = minitron.generate("tiny", PROMPT, max_new_tokens=24, **settings)
    assert continuation(service, max_new_tokens=24, **settings) == expected


def test_the_text_of_a_special_token_is_text(service: Service) -> None:
    with service.cache.acquire(ModelKey("tiny")) as (loaded,):
        special = loaded.tokenizer.eos_token
        ids = loaded.encode(f"before {special} after")
        assert loaded.tokenizer.eos_token_id not in ids
        assert special in loaded.tokenizer.decode(ids)


def test_the_parts_of_a_text_join_to_the_whole(service: Service) -> None:
    settings = Settings(max_new_tokens=64, temperature=1.5, seed=5)
    *_, (column,) = service.compare(["tiny"], "Ça coûte 5 € — été", settings)
    with service.cache.acquire(ModelKey("tiny")) as (loaded,):
        ids = loaded.encode("Ça coûte 5 € — été")
        whole = decoded(loaded, [*ids, *column.tokens])[len(decoded(loaded, ids)) :]
    assert column.text == whole
    assert sum(part.tokens for part in column.parts) == len(column.tokens)


def test_a_teacher_agrees_with_every_token_of_its_own(tmp_path: Path) -> None:
    models = (CatalogModel("first", "tiny"), CatalogModel("twin", "tiny", teacher="first"))
    service = Service.create(Catalog(models), tmp_path)
    *_, columns = service.compare(["first", "twin"], PROMPT, Settings(max_new_tokens=24))
    first, twin = columns
    assert first.text == twin.text
    assert first.agreement is None
    assert twin.agreement == 1
    assert len(twin.checks) == 24


def test_agreement_equals_one_forward_pass_of_the_teacher(pair: Service) -> None:
    *_, columns = pair.compare(["child"], PROMPT, Settings(max_new_tokens=21))
    (column,) = columns
    with pair.cache.acquire(ModelKey("tiny")) as (teacher,):
        ids = teacher.encode(PROMPT)
        logits = teacher.model(torch.tensor([[*ids, *column.tokens]])).logits[0]
    likeliest = logits[len(ids) - 1 : -1].argmax(-1).tolist()
    agrees = [one == other for one, other in zip(likeliest, column.tokens, strict=True)]
    assert [check.agrees for check in column.checks] == agrees
    assert 0 < sum(agrees) < 21
    assert column.to_json()["agreement_with_teacher"] == sum(agrees) / 21


def test_sampling_does_not_change_what_agreement_measures(tmp_path: Path) -> None:
    models = (CatalogModel("first", "tiny"), CatalogModel("twin", "tiny", teacher="first"))
    service = Service.create(Catalog(models), tmp_path)
    settings = Settings(max_new_tokens=24, temperature=1.0, seed=3)
    *_, (column,) = service.compare(["twin"], PROMPT, settings)
    with service.cache.acquire(ModelKey("twin")) as (loaded,):
        ids = loaded.encode(PROMPT)
        logits = loaded.model(torch.tensor([[*ids, *column.tokens]])).logits[0]
    assert logits[len(ids) - 1 : -1].argmax(-1).tolist() != column.tokens
    assert column.agreement == 1


def test_a_page_explains_marks_speed_and_the_numbers_by_the_names_of_the_cards() -> None:
    html = how_measured()
    assert all(f'<mark class="mt-{kind}">' in html for kind in ("near", "far"))
    assert "with whatever else runs on it: one model alone" in html
    cards = answer_cards([Column(ModelKey("tiny"))])
    assert re.findall("<dt>(.*?)</dt>", html) == re.findall("<dt>(.*?)</dt>", cards)


def test_the_numbers_of_a_model_are_known_before_a_comparison(pair: Service) -> None:
    names = pair.catalog.names
    before = pair.columns(names)
    *_, after = pair.compare(names, PROMPT, Settings(max_new_tokens=2))
    for name in ("key", "teacher", "parameters", "weight_bytes", "kv_cache_bytes_per_token"):
        assert [getattr(c, name) for c in before] == [getattr(c, name) for c in after]
    assert [column.is_at_limit for column in after] == [True, True]
    html = answer_cards(before, are_running=False)
    assert "The answer appears here." in html
    assert "data-state" not in html


def test_int8_weights_are_compared_with_the_full_weights_of_the_same_model(pair: Service) -> None:
    pytest.importorskip("optimum.quanto")
    settings = Settings(max_new_tokens=24)
    *_, columns = pair.compare(["child"], PROMPT, settings, quantization="int8")
    full, integers = columns
    assert (full.teacher, integers.teacher) == ("tiny", "child")
    assert integers.weight_bytes < 0.8 * full.weight_bytes
    assert len(integers.checks) == 24
    assert integers.agreement is not None
    assert full.agreement is not None
    assert integers.agreement > full.agreement


def test_equal_seeds_give_equal_texts_whoever_else_is_sampling(service: Service) -> None:
    alone = continuation(service, temperature=1.0, seed=7)
    texts: list[str] = []
    threads = [
        threading.Thread(
            target=lambda seed=seed: texts.append(continuation(service, temperature=1.0, seed=seed))
        )
        for seed in (7, 8, 7, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts.count(alone) == 2


def test_a_stop_ends_a_text_within_a_step(service: Service) -> None:
    columns = service.compare(["tiny"], PROMPT, Settings(max_new_tokens=256), visitor="me")
    for (column,) in columns:
        if column.tokens:
            service.stop("me")
            break
    *_, (column,) = columns
    assert 0 < len(column.tokens) < 256
    assert column.is_done
    assert all(one.users == 0 for one in service.cache._loaded.values())


def test_a_comparison_that_nobody_reads_releases_its_models(service: Service) -> None:
    columns = service.compare(["tiny"], PROMPT, Settings(max_new_tokens=256))
    next(columns)
    next(columns)
    columns.close()
    assert all(one.users == 0 for one in service.cache._loaded.values())


# Sizes and cuts.


def test_a_plan_has_the_keys_of_inspect_and_the_share_kept(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.space.jobs.measures._AGREEMENT", math.inf)  # of a busy machine
    plan = service.plan("tiny", 160, 608, None, 5)
    assert minitron.inspect("tiny").to_json().keys() <= plan.keys()
    assert plan["share_of_importance_kept"].keys() == {"hidden", "ffn", "layers"}
    assert all(0 < share < 1 for share in plan["share_of_importance_kept"].values())
    assert plan["parameters"] < plan["before"]["parameters"]
    assert plan["tokens_per_second_estimated"] > 0


def test_the_command_that_is_shown_writes_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.space.jobs.measures.PACKAGED", tmp_path / "nothing")
    for module in ("measures", "preview", "pruning"):
        monkeypatch.setattr(f"minitron.space.jobs.{module}.SAMPLES", 4)
    service = Service.create(Catalog.of(["tiny"]), tmp_path / "cache")  # both measure here
    *_, result = service.prune("tiny", 192, None, 6, 5)
    entry = result.preview.entry
    line = str(command(entry, result.sizes, str(tmp_path / "again"), 256)).split()
    from minitron.cli import main

    main(line[1:])
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert (result.folder / "model.safetensors").read_bytes() == again
    plan = service.preview("tiny", 192, None, 6, 5, timed=False)[0].to_json()
    assert result.to_json()["after"]["parameters"] == plan["parameters"]
    assert result.to_json()["after"]["bytes"] == plan["bytes"]


def test_the_card_of_a_result_has_the_command_that_is_shown_and_the_evaluation(
    service: Service,
) -> None:
    *_, result = service.prune("tiny", 160, 592, None, None)
    card = (result.folder / "README.md").read_text()
    shown = command(result.preview.entry, result.sizes, result.folder.name, SEQ_LEN)
    block = card[card.index("minitron prune tiny ") :].split("```")[0].replace("\\\n", " ")
    assert set(str(shown).split()) <= set(block.split())  # which names the whole sizes, too
    assert f"{result.after.loss:.4f}" in card
    assert "On 16 sequences that tiny sampled itself" in card
    assert "not evaluated yet" not in card
    for text in (card, (result.folder / "minitron.json").read_text()):
        assert not re.search(r"[^\s\"]*/importance/|tiny\.safetensors|held-out\.npy", text)


def test_results_are_removed_when_there_are_many(service: Service) -> None:
    for layers in (5, 4, 5, 4, 5, 4, 5, 4, 5):
        *_, result = service.prune("tiny", None, None, None, layers)
    assert len(list(service.pruner.results.root.iterdir())) <= 8
    assert result.archive.exists()
    with pytest.raises(VisitorError, match="not here"):
        service.pruner.check_folder("/etc")


def test_a_preview_draws_a_heat_map_of_every_axis(service: Service) -> None:
    drawn = preview_card(service.preview("tiny", 160, 608, 6, 5)[0])
    for axis in ("heads", "ffn", "hidden", "layers"):
        assert f'data-axis="{axis}"' in drawn
    assert drawn.count("<svg") == 4


def test_a_speed_has_no_bar_and_a_whole_model_no_command(
    service: Service,
) -> None:
    found, sizes = service.preview("tiny", 160, 608, 6, 5, timed=False)
    known = preview_card(replace(found, timings=timed(0.01)))
    assert re.findall(r'class="mt-bar( mt-bar-none)?"', known) == ["", "", "", " mt-bar-none"]
    assert "minitron prune" in recipe_card(found, sizes, 256)
    assert recipe_card(*service.preview("tiny", *[None] * 4, timed=False), 256) == ""


def test_templates_escape_every_text() -> None:
    column = Column(ModelKey("<b>"), notices=("<i>",), is_done=True)
    column.tokens, column.parts = [7], [TextPart('<script>"', 1)]
    column.checks = [TokenCheck(False, '"><u>', 0.25, '"><u>', 0.5)]
    html = answer_cards([column])
    assert not re.search(r"<(b|i|u|script)>", html)
    assert "&lt;script&gt;" in html
    choice = "“&#34;&gt;&lt;u&gt;”"
    hint = f"Most likely for this model: {choice}; for the teacher: {choice}, 50 %, against 25 %."
    assert f'title="{hint}"' in html
    assert "<td>" not in render("recipe", out="<td>", parts=[("<td>", "mt-command", ("<td>",))])


def test_a_text_is_shown_with_its_own_spaces_alone() -> None:
    column = Column(ModelKey("tiny"), tokens=[7, 8], parts=[TextPart(" a", 1), TextPart("\n b", 1)])
    text = re.search(r'aria-live="off">(.*?)</div>', answer_cards([column]), re.DOTALL)
    assert text is not None
    assert re.sub("<[^>]+>", "", text[1]) == " a\n b"


def test_numbers_have_three_digits_and_marks_of_markdown_are_html() -> None:
    numbers = (count(6_724_096), byte_size(13_448_192), percent(0.996))
    assert numbers == ("6.72 M", "13.4 MB", "99.6 %")
    assert inline("a `b<` **c** [d](https://e)") == (
        'a <code>b&lt;</code> <b>c</b> <a href="https://e">d</a>'
    )


# Memory and slots.


def cache_of(sizes: dict[str, int], limit: int) -> ModelCache:
    catalog = Catalog(tuple(CatalogModel(name, "tiny") for name in sizes))

    def load(entry: CatalogModel, key: ModelKey) -> LoadedModel:
        return LoadedModel(key, entry, None, None, sizes[entry.name], "")  # type: ignore[arg-type]

    cache = ModelCache(catalog, limit, load)
    cache._size = lambda key: sizes[key.name]  # type: ignore[method-assign]
    return cache


def test_the_least_recently_used_model_is_evicted_first() -> None:
    cache = cache_of({"a": 4, "b": 4, "c": 4}, limit=8)
    for name in "abac":
        with cache.acquire(ModelKey(name)):
            pass
    assert [key.name for key in cache.keys] == ["a", "c"]


def test_a_model_in_use_is_never_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minitron.space.jobs.models._WAIT_SECONDS", 0.05)
    cache = cache_of({"a": 5, "b": 5}, limit=8)
    with cache.acquire(ModelKey("a")), pytest.raises(BusyError), cache.acquire(ModelKey("b")):
        pass
    with cache.acquire(ModelKey("b")):
        assert [key.name for key in cache.keys] == ["b"]


def test_more_than_the_cache_holds_is_refused_at_once() -> None:
    cache = cache_of({"a": 5, "b": 5}, limit=8)
    keys = ModelKey("a"), ModelKey("b")
    with pytest.raises(VisitorError, match="choose fewer"), cache.acquire(*keys):
        pass


def test_slots_are_given_in_the_order_of_asking() -> None:
    semaphore, order = FairSemaphore(1), []

    def take(number: int) -> None:
        with semaphore.slot():
            order.append(number)

    with semaphore.slot():
        threads = []
        for number in range(5):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            while len(semaphore._waiting) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_no_more_threads_compute_than_there_are_slots() -> None:
    semaphore, now, most = FairSemaphore(2), 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal now, most
        for _ in range(20):
            with semaphore.slot():
                with lock:
                    now += 1
                    most = max(most, now)
                time.sleep(0.0005)
                with lock:
                    now -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2
    assert now == 0


def test_a_text_stops_when_its_time_is_over(service: Service) -> None:
    settings = Settings(max_new_tokens=256)
    request = ComparisonRequest.checked(service.catalog, ["tiny"], PROMPT, settings)
    *_, (column,) = compare(
        service.cache, service.catalog, request, service.semaphore, StopSignal(0.0)
    )
    assert column.tokens == []


def test_importance_is_measured_once_and_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.space.jobs.measures.PACKAGED", tmp_path / "nothing")
    entry = Catalog.of(["tiny"]).model("tiny")
    first = Measurements(tmp_path, FairSemaphore(1)).importance(entry)
    assert first.axes
    monkeypatch.setattr("minitron.space.jobs.measures.measure_importance", None)
    assert Measurements(tmp_path, FairSemaphore(1)).importance(entry).digest == first.digest


@pytest.mark.parametrize("name", ["tiny", "tiny-half", "tiny-quarter"])
def test_the_importance_of_an_embedded_model_is_in_the_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under any name: it belongs to the weights, and is made as the Space would measure it."""
    monkeypatch.setattr("minitron.space.jobs.measures.measure_importance", None)
    entry = CatalogModel("renamed", name)
    importance = Measurements(tmp_path, FairSemaphore(1)).importance(entry)
    importance.check_made_for(entry.open())
    made_by = importance.made_by
    assert (made_by["corpus"], made_by["tokens"]) == ("self", SAMPLES * SEQ_LEN)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_packages_importance_takes_at_most_a_hundred_kilobytes() -> None:
    files = list(PACKAGED.glob("*.safetensors"))
    assert {path.stem for path in files} == {"tiny", "tiny-half", "tiny-quarter"}
    assert sum(path.stat().st_size for path in files) <= 100_000


def test_the_packages_importance_is_what_a_measurement_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another processor may sample other text; the order of the channels is nearly the same."""
    entry = CatalogModel("tiny-quarter", "tiny-quarter")
    packaged = Measurements(tmp_path, FairSemaphore(1)).importance(entry).axis("hidden")
    monkeypatch.setattr("minitron.space.jobs.measures.PACKAGED", tmp_path / "nothing")
    measured = Measurements(tmp_path, FairSemaphore(1)).importance(entry).axis("hidden")
    ranks = torch.stack([packaged.argsort().argsort(), measured.argsort().argsort()]).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.95


def timed(seconds: float) -> Timings:
    """Timings that are equal at all sizes."""
    corners = Corners((256,), (8,), (1024,))
    table = LatencyTable(corners, ((seconds,),), ((0.0,),), (0.0,), 0.0)
    return Timings(table, Conditions("cpu", torch.float32, 1, 16))


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [((3.0, 1.0, 9.0, 1.1), 1.0), ((1.0, 1.0), 1.0), ((1.0, 2.0, 4.0, 8.0, 16.0), None)],
)
def test_the_speed_is_the_fastest_round_that_another_confirms(
    rounds: tuple[float, ...],
    expected: float | None,
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = [timed(seconds) for seconds in rounds]
    monkeypatch.setattr("minitron.space.jobs.measures._measure_timings", lambda *_: left.pop(0))
    entry = service.catalog.model("tiny")
    measurements = Measurements(tmp_path, FairSemaphore(1))
    found = measurements.timings(entry)
    assert not left
    assert measurements.known_timings(entry) is found
    assert found == (None if expected is None else timed(expected))


def test_a_speed_that_is_not_known_is_no_number(service: Service) -> None:
    found = replace(service.preview("tiny", 160, 608, 6, 5)[0], timings=None)
    assert found.to_json()["tokens_per_second_estimated"] is None
    assert "this machine is too busy to time it" in preview_card(found)
    assert "being measured" in preview_card(found, timed=False)


@pytest.mark.parametrize("name", zoo())
def test_the_least_budget_on_the_slider_has_sizes(name: str) -> None:
    entry = CatalogModel(name, name, None)
    least = least_percent(entry)
    assert round(100 * Sizes.of_share(entry, least / 100).share_of(entry)) == least


def test_every_budget_in_percent_has_sizes_that_the_sliders_can_show(service: Service) -> None:
    entry = service.catalog.model("tiny")
    for percent_kept in range(8, 101):
        sizes = Sizes.of_share(entry, percent_kept / 100)
        assert round(100 * sizes.share_of(entry)) == percent_kept
        assert Sizes.on_sliders(entry, *vars(sizes).values()) == sizes
    assert Sizes.on_sliders(entry, 100, 1000, 3, 6) == Sizes(96, 1008, 4, 6)


def test_a_size_beyond_a_slider_gives_the_nearest_one_and_what_is_no_number_is_refused(
    service: Service,
) -> None:
    entry = service.catalog.model("tiny")
    own = Sizes.full(entry)
    assert Sizes.on_sliders(entry, 9999, None, 99, 7) == own
    assert Sizes.on_sliders(entry, -5, 0, 0, 0) == Sizes(32, 128, 2, 1)
    for value in ("wide", math.nan, math.inf):
        with pytest.raises(VisitorError, match="hidden_size is"):
            Sizes.on_sliders(entry, value, None, None, None)


def test_a_command_is_quoted_and_its_parts_hold_a_flag_with_its_value(service: Service) -> None:
    entry = CatalogModel("mine", "my models/tiny")
    object.__setattr__(entry, "inspection", service.catalog.model("tiny").inspection)
    line = command(entry, Sizes(160, 1024, 8, 6), "out", 256)
    assert "--hidden-size 160" in line.parts
    assert str(line).startswith("minitron prune 'my models/tiny' out --hidden-size 160 --corpus")


@pytest.fixture
def short_distillation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Service]:
    """A Space that distills for a few steps, on a few words."""
    for name, few in {"SAMPLES": 2, "HELD_OUT": 2, "SEQ_LEN": 32}.items():
        monkeypatch.setattr(f"minitron.space.jobs.measures.{name}", few)
    for name, few in {"STEPS": 6, "MEASURED_EVERY": 3, "SEQUENCES": 4, "CHUNK": 2}.items():
        monkeypatch.setattr(f"minitron.space.jobs.distilling.{name}", few)
    service = Service.create(Catalog.of(["tiny"]), tmp_path)
    yield service
    service.close()


def test_a_pruned_model_learns_from_its_original_in_steps_that_others_may_interrupt(
    short_distillation: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = short_distillation
    *_, pruned = service.prune("tiny", 160, 592, None, None, visitor="me")
    slots = []
    slot = service.semaphore.slot
    monkeypatch.setattr(service.semaphore, "slot", lambda: slots.append(1) or slot())
    *_, lesson = service.distill(str(pruned.folder), visitor="me")
    assert [step for step, _ in lesson.losses] == [0, 3, 6]
    assert lesson.losses[-1][1] < lesson.losses[0][1] - 0.1
    assert lesson.teacher_loss < lesson.losses[0][1]
    assert lesson.tokens == 6 * 4 * 32  # all four sequences in each step
    assert len(slots) >= 2 + 6 + 4  # parts of the text, steps, measurements
    before, after = lesson.texts
    assert before.text != after.text
    card = lesson_card(replace(lesson, steps=48), PROMPT)
    assert f"<h3>{pruned.folder.name}: loss " in card
    assert "48 of 48 steps on 768 tokens, out of a text of 128 tokens that tiny sampled." in card
    assert "Stopped after 75 s: 6 of 48 steps" in lesson_card(
        replace(lesson, ending="Stopped after 75 s"), PROMPT
    )
    samples = service.sample(pruned)
    assert before.text == samples[1].text
    assert samples[0].is_at_limit  # a text that could go on ends with three dots
    random = replace(pruned.after, text=replace(pruned.after.text, loss=8.0))
    result = result_card(replace(pruned, after=random), samples, PROMPT, 32)
    assert result.count("…</span>") == sum(sample.is_at_limit for sample in samples)
    assert card.count("…</span>") == sum(text.is_at_limit for text in lesson.texts)
    assert "<td>2,981.0</td>" in result
    assert f"<h3>{pruned.folder.name}</h3>" in result
    assert "measured on 16 sequences that tiny sampled itself" in result


def test_a_distillation_stops_when_its_visitor_stops_it_or_leaves(
    short_distillation: Service,
) -> None:
    *_, pruned = short_distillation.prune("tiny", 160, 592, None, None, visitor="me")
    for end in (short_distillation.stop_distilling, short_distillation.leave):
        for lesson in short_distillation.distill(str(pruned.folder), visitor="me"):
            if lesson.tokens:
                end("me")
        assert lesson.is_done
        assert (lesson.tokens, lesson.steps, lesson.ending) == (4 * 32, 1, "Stopped")
        assert len(lesson.texts) == 2
    lessons = short_distillation.distill(str(pruned.folder), visitor="me")
    next(lessons)
    short_distillation.stop_distilling("me")
    *_, lesson = lessons
    assert (lesson.is_done, lesson.steps, len(lesson.texts)) == (True, 0, 1)
    card = lesson_card(lesson, PROMPT)
    assert f"Stopped: {pruned.folder.name} is not trained" in card
    assert "Pruned and distilled" not in card
    assert " → " not in card


def test_only_a_result_is_distilled_and_no_large_model(
    short_distillation: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(VisitorError, match="not here"):
        list(short_distillation.distill("/etc"))
    with pytest.raises(VisitorError, match="prune one first"):
        list(short_distillation.distill(str(short_distillation.pruner.results.create())))
    *_, pruned = short_distillation.prune("tiny", 160, 592, None, None)
    monkeypatch.setattr("minitron.space.jobs.distilling.SMALL", 1000)
    with pytest.raises(VisitorError, match="use `minitron distill`"):
        list(short_distillation.distill(str(pruned.folder)))


def test_a_result_that_the_disk_cannot_hold_is_refused(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=10_000_000)
    monkeypatch.setattr("minitron.space.jobs.pruning.shutil.disk_usage", lambda _: usage)
    with pytest.raises(VisitorError, match="this Space has 9.54 MiB left"):
        list(service.prune("tiny", 160, 592, None, None))


def test_the_next_command_that_is_shown_distills_the_folder(
    short_distillation: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minitron.cli import main

    *_, pruned = short_distillation.prune("tiny", 160, 592, None, None)
    monkeypatch.chdir(pruned.folder.parent)
    line = str(next_command(pruned.preview.entry, pruned.folder.name, 32)).split()
    main([*line[1:], "--samples", "2", "--steps", "1"])
    assert minitron.inspect(f"{pruned.folder.name}-distilled").hidden_size == 160


def test_a_share_of_the_parameters_is_met_within_five_percent(service: Service) -> None:
    entry = service.catalog.model("tiny")
    sizes = Sizes.of_share(entry, 0.5)
    found = preview(entry, sizes, service.measurements)
    assert found.plan.target.parameters / entry.open().architecture.parameters == pytest.approx(
        0.5, rel=0.05
    )
    assert sizes.folder_name(entry).startswith("tiny-h")


# Pushing and the command line.


def test_a_visitors_token_is_in_one_process_and_in_no_argument_or_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def run(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        calls.append((arguments, options["env"]["HF_TOKEN"]))
        text = "minitron: cannot push to me/half: hf_secret may only read"
        return subprocess.CompletedProcess(arguments, 2, "", text)

    monkeypatch.setattr("minitron.space.jobs.pruning.subprocess.run", run)
    with pytest.raises(MinitronError, match="may only read") as error:
        push_with_token("hf_secret", tmp_path, "me/half")
    ((arguments, token),) = calls
    assert arguments[-3:] == ["push", str(tmp_path), "me/half"]
    assert token == "hf_secret"
    assert "hf_secret" not in f"{arguments}{error.value}"
    assert "HF_TOKEN" not in os.environ


@pytest.mark.parametrize("repo", ["", "../x", "a/b/c", "--private", "me/half; rm"])
def test_a_name_that_is_no_repository_is_refused_before_anything_runs(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.space.jobs.pruning.subprocess.run", None)
    with pytest.raises(VisitorError, match="write owner/name"):
        push_with_token("hf_secret", tmp_path, repo)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "nowhere-at-all"], "nowhere-at-all does not exist"),
        (["demo", "tiny", "--port", "70000"], "--port is 70000"),
        (["demo", "tiny", "tiny"], "none twice"),
    ],
)
def test_a_demo_with_wrong_arguments_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")
    from minitron.cli import main

    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_link_sets_valid_values_and_ignores_others(service: Service) -> None:
    pytest.importorskip("gradio")
    from minitron.space.page import link_values

    query = {
        "tab": "prune",
        "prompt": "a\x00",
        "models": "tiny,/etc/passwd",
        "temperature": "nan",
        "seed": "7",
        "model": "tiny",
        "hidden_size": "128",
        "__theme": "dark",
    }
    wanted, refused = link_values(service, query)
    assert {"tab", "seed", "model"} | set(SIZES) == set(wanted)
    assert (wanted["seed"], wanted["hidden_size"]["value"]) == (7, 128)
    assert refused == ["prompt", "models", "temperature"]
    wanted, refused = link_values(service, {"hidden_size": "300", "num_hidden_layers": "5"})
    assert [wanted[name]["value"] for name in SIZES] == [
        *vars(Sizes.full(service.catalog.model("tiny"))).values()
    ][:3] + [5]
    assert refused == ["hidden_size"]
    assert link_values(service, {"model": "huge", "hidden_size": "64"}) == ({}, ["model"])
    wanted, _ = link_values(service, {"model": "tiny"})  # no size: about half, as the tab begins
    assert wanted["hidden_size"]["value"] < Sizes.full(service.catalog.model("tiny")).hidden_size


def test_the_header_of_the_space_names_existing_files() -> None:
    place = Path(minitron.space.__file__).parent
    header = yaml.safe_load((place / "README.md").read_text().split("---")[1])
    assert header["sdk"] == "gradio"
    assert (place / header["app_file"]).is_file()
    assert len((place / "app.py").read_text().splitlines()) <= 25
    assert len(header["short_description"]) <= 60


def test_every_picture_of_the_space_is_shown_in_readme() -> None:
    root = Path(__file__).parent.parent
    readme = (root / "README.md").read_text(encoding="utf-8")
    pictures = list((root / "docs" / "pictures" / "space").iterdir())
    assert pictures
    assert [path.name for path in pictures if f"space/{path.name})" not in readme] == []
