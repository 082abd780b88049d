"""The card of a user's own folder: its content, its code, and changes by hand."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, metadata_update

import minitron
from minitron import cli
from minitron.errors import MinitronError, OutputError, SourceError
from minitron.model.plan import indices_of
from minitron.recipe import record_of
from minitron.recipes.conversion import ConvertRecipe
from minitron.recipes.pruning import PruneRecipe
from minitron.recipes.training import DistillRecipe, TrainRecipe
from minitron.records.card_page import read_page
from minitron.records.card_texts import RECIPES, command_of, limit_texts
from minitron.records.kept_picture import draw_kept, kept_maps
from minitron.records.model_card import write_card
from minitron.records.task_scores import TaskScores, record_of_scores
from minitron.records.training_texts import training_texts
from minitron.sources.opening import zoo

TARGET: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
}
SEQ_LEN = 12


@pytest.fixture(scope="module")
def both_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher pruned, and distilled for two steps."""
    root = tmp_path_factory.mktemp("made")
    ids = np.random.default_rng(0).integers(6, 4096, size=(16, SEQ_LEN))
    np.save(root / "text.npy", ids)
    corpus = str(root / "text.npy")
    minitron.prune("tiny", str(root / "small"), corpus=corpus, **TARGET)
    minitron.distill(
        str(root / "small"),
        str(root / "taught"),
        teacher="tiny",
        corpus=corpus,
        eval_corpus=corpus,
        steps=2,
        batch_size=4,
        alpha=0.0,
    )
    return root


@pytest.fixture
def folder(both_folders: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(both_folders / "small", tmp_path / "small"))


@pytest.fixture
def taught(both_folders: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(both_folders / "taught", tmp_path / "taught"))


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_prune_and_card_write_the_same_words(folder: Path) -> None:
    pruned, picture = text_of(folder), (folder / "kept.png").read_bytes()
    assert "![what was kept of each layer](kept.png)" in pruned
    minitron.card(str(folder))
    assert text_of(folder) == pruned
    assert (folder / "kept.png").read_bytes() == picture


def test_the_card_lists_what_was_removed(folder: Path) -> None:
    text = text_of(folder)
    assert "Pruned from `tiny` by `minitron prune`." in text
    assert (
        "| | tiny | small | kept |\n|---|---:|---:|---:|\n| hidden_size | 256 | 96 | 38% |" in text
    )
    inspected = minitron.inspect(str(folder))
    assert f"| parameters | 6,724,096 | {inspected.parameters:,} |" in text
    cache = inspected.kv_cache_bytes_per_token
    assert f"{cache:,} bytes of KV cache a token" in text
    assert "Pruned and not trained since" in text
    assert "Grey: what it removed. Paler green: kept in part." in text
    assert "Share of the score that is kept: " in text


def test_a_distilled_model_names_its_pruning_too(taught: Path, both_folders: Path) -> None:
    text = text_of(taught)
    assert "Pruned from `tiny` by `minitron prune`. Distilled by `minitron distill`" in text
    assert "| hidden_size | 256 | 96 | 38% |" in text
    assert "Teacher: `tiny` (6,724,096 parameters). Loss: forward KL divergence" in text
    assert ": 2 steps, " in text
    assert f", {2 * 4 * SEQ_LEN:,} tokens in all, peak" in text
    record = json.loads((taught / "minitron.json").read_text())
    theirs = minitron.evaluate("tiny", corpus=str(both_folders / "text.npy")).loss
    assert theirs == pytest.approx(record["teacher"]["held_out_loss"], abs=0.01)
    assert re.search(
        rf"Loss on held-out text, in windows of {SEQ_LEN} tokens: .* nats a token at the start, "
        r".* at the end. The teacher has "
        rf"{record['teacher']['held_out_loss']:.3f} on the same text\.",
        text,
    )
    assert "not evaluated" not in text
    assert "Its loss was measured on the held-out text of its training only: `minitron" in text
    assert "Starts from the weights of `small`: " in text
    assert "![loss curve](loss.png)" in text
    assert f"Trained on {2 * 4 * SEQ_LEN:,} tokens since; the papers use 94,000,000,000." in text
    assert ModelCard.load(taught / "README.md").data.tags == ["minitron", "pruning", "distillation"]


def test_scores_are_shown_before_and_after(both_folders: Path, tmp_path: Path) -> None:
    small = Path(shutil.copytree(both_folders / "small", tmp_path / "small"))
    corpus = str(both_folders / "text.npy")
    before = minitron.evaluate(str(small), corpus=corpus, record=True)
    again = tmp_path / "again"
    options: dict[str, Any] = {"teacher": "tiny", "corpus": corpus, "steps": 1, "alpha": 0.0}
    minitron.distill(str(small), str(again), **options)
    after = minitron.evaluate(str(again), corpus=corpus, record=True)
    text = text_of(again)
    assert text.index(f"| again | {after.loss:.4f} |") < text.index("Before, as `small`: ")
    assert text.index("Before, as `small`: ") < text.index(f"| small | {before.loss:.4f} |")
    assert "not evaluated" not in text


def test_benchmarks_are_in_the_table_and_in_the_model_index(folder: Path) -> None:
    scores = TaskScores("mmlu", {"acc": 0.586}, samples=10, num_fewshot=5, dataset="cais/mmlu")
    record = json.loads((folder / "minitron.json").read_text())
    record["benchmarks"] = record_of_scores([scores], "minitron evaluate small --tasks mmlu")
    (folder / "minitron.json").write_text(json.dumps(record))
    metadata_update_local(folder, {"license": "mit"})
    write_card(folder)
    text = text_of(folder)
    assert f"| {record['benchmarks']['rows'][0]['name']} |" in text
    assert "not evaluated" not in text
    data = ModelCard.load(folder / "README.md").data
    assert data.license == "mit"
    assert data.model_name == "small"
    assert [result.dataset_type for result in data.eval_results] == ["cais/mmlu"]


def commands_in(text: str) -> list[list[str]]:
    (shell,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line) for line in shell.splitlines()]


@pytest.mark.parametrize(
    ("name", "limit"),
    [("small", "Pruned and not trained since"), ("taught", "tokens since; the papers use")],
)
def test_a_converted_model_has_the_limits_of_its_source(
    name: str, limit: str, both_folders: Path, tmp_path: Path
) -> None:
    minitron.convert(str(both_folders / name), str(tmp_path / "converted"))
    assert limit in text_of(tmp_path / "converted")
    assert "It was not evaluated yet" in text_of(tmp_path / "converted")


def pruning(*, used: bool, losses: tuple[float, float, float], kept: bool = True) -> dict[str, Any]:
    """A record of a pruning whose losses (source, pruned, reconstructed) were measured."""
    sizes = dict.fromkeys(("hidden_size", "parameters"), 4)
    names = ("source", "pruned", "reconstructed")
    fit = {"used": used, "hidden": "select", "losses": dict(zip(names, losses, strict=True))}
    return {
        "command": "prune",
        "recipe": {},
        "source": {"name": "tiny", **sizes},
        "target": sizes,
        "importance": {"scores": "paper"},
        "kept": {"layers": "0"} if kept else {},
        "reconstruction": {**fit, "tokens": 9, "corpus": "books"},
    }


@pytest.mark.parametrize(
    ("used", "losses", "limit"),
    [
        (True, (3.7295, 4.1, 3.8521), "its loss is 0.123 nats a token above that of `tiny` on"),
        (False, (3.7295, 3.7247, 3.7255), "its loss is 0.0048 nats a token below that of `tiny`"),
        (True, (3.5, 3.6, 3.5), "its loss is that of `tiny` on the held-out part of its cal"),
    ],
)
def test_a_measured_loss_is_stated_by_number(
    used: bool, losses: tuple[float, float, float], limit: str
) -> None:
    _, pruned, _ = limit_texts([pruning(used=used, losses=losses)], "half")
    assert pruned.startswith("Pruned and not trained since: ")
    assert limit in pruned
    assert "worse" not in pruned


def test_a_loss_that_was_not_measured_is_called_neither_better_nor_worse() -> None:
    cut = pruning(used=False, losses=(3.5, 3.6, 3.5))
    del cut["reconstruction"]
    _, pruned, _ = limit_texts([cut], "half")
    assert "its loss was not compared with that of `tiny`" in pruned
    assert "worse" not in pruned


def test_losses_that_differ_are_shown_with_the_decimals_that_show_it() -> None:
    _, fit = training_texts([pruning(used=False, losses=(3.73, 3.7247, 3.7255))], [])
    assert "3.7247 nats a token as it is cut, 3.7255 with the fit, 3.7300 for `tiny`" in fit


def test_where_nothing_was_removed_nothing_is_called_worse() -> None:
    copied = pruning(used=False, losses=(3.7, 3.7, 3.7), kept=False)
    del copied["reconstruction"]
    cut = pruning(used=True, losses=(3.0, 3.4, 3.2))
    assert not any("runed" in limit for limit in limit_texts([copied], "same"))
    assert "0.200 nats a token above" in limit_texts([cut, copied], "same")[1]


def test_what_was_trained_from_random_weights_and_further_is_derived_from_no_model() -> None:
    made = pruning(used=True, losses=(3.0, 3.4, 3.2))
    first = {**made, "command": "train", "recipe": {"scratch": True}}
    further = {**made, "command": "train", "recipe": {"scratch": False}}
    assert limit_texts([first, further], "it")[0].startswith("Trained from random weights: ")
    assert limit_texts([first, made], "it")[0].startswith("A derived model: ")
    assert limit_texts([further], "it")[0].startswith("A derived model: ")


def test_it_says_what_remake_can_do(both_folders: Path) -> None:
    pruned, trained = (text_of(both_folders / name) for name in ("small", "taught"))
    assert "`minitron remake small again` builds the same weights" in pruned
    assert "`minitron remake taught small --before-training` builds the model that" in trained
    assert "minitron remake taught again" not in trained


def test_its_commands_make_it_again(taught: Path) -> None:
    prune, distill = commands_in(text_of(taught))
    assert prune[:4] == ["minitron", "prune", "tiny", "small"]
    assert distill[:4] == ["minitron", "distill", "small", "taught"]
    _, bound, _ = cli.app.parse_args(prune[1:], exit_on_error=False, print_error=False)
    record = json.loads((taught / "minitron.json").read_text())["source"]["made"]["recipe"]
    recipe = {**record_of(PruneRecipe(**bound.arguments)), "corpus": record["corpus"]}
    assert recipe == record


@pytest.mark.parametrize(
    "recipe",
    [
        PruneRecipe(source="a b", out="c", ratio=0.5, head_residual=True, corpus="self", seed=3),
        ConvertRecipe(source="x.nemo", out="y", check=False, dtype="bfloat16"),
        TrainRecipe(out="o", init="tiny", corpus="t.txt", scratch=True, trainer={"optim": "sgd"}),
        DistillRecipe(student="s", out="o", teacher="t", corpus="c", alpha="dynamic", kind="jsd"),
        DistillRecipe(student="s", out="o", teacher="t", corpus="c", alpha=0.0),
    ],
    ids=lambda recipe: type(recipe).__name__,
)
def test_a_command_line_says_its_recipe_exactly(recipe: Any) -> None:
    command = next(name for name, type_ in RECIPES.items() if type(recipe) is type_)
    line = command_of({"command": command, "recipe": record_of(recipe)}, recipe.out)
    tokens = shlex.split(line)[1:]
    _, bound, _ = cli.app.parse_args(tokens, exit_on_error=False, print_error=False)
    assert RECIPES[command](**bound.arguments) == recipe


def test_its_python_runs(
    taught: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(taught)
    (code,) = re.findall(r"```python\n(.*?)```", text_of(taught), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_metadata_name_base_relation_and_datasets(folder: Path) -> None:
    record = json.loads((folder / "minitron.json").read_text())
    record["source"] |= {"name": "Some/Model@main", "revision": "abc"}
    record["source"]["metadata"] = {"license": "mit", "language": ["en"]}
    record["recipe"]["corpus"] = "owner/texts:default:train"
    (folder / "minitron.json").write_text(json.dumps(record))
    write_card(folder)
    data = ModelCard.load(folder / "README.md").data.to_dict()
    assert data["base_model"] == "Some/Model"
    assert data["base_model_relation"] == "finetune"
    assert data["datasets"] == ["owner/texts"]
    assert data["license"] == "mit"
    assert data["library_name"] == "transformers"


def test_a_folder_with_a_slash_is_no_repository(folder: Path) -> None:
    record = json.loads((folder / "minitron.json").read_text())
    record["source"]["name"] = "work/whole"
    (folder / "minitron.json").write_text(json.dumps(record))
    write_card(folder)
    assert ModelCard.load(folder / "README.md").data.base_model is None


def test_what_was_written_by_hand_stays(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "README.md"
    path.write_text(path.read_text().replace("## Limits", "## What I think of it\n\n## Limits"))
    mine = path.read_text()
    picture = (folder / "kept.png").read_bytes()
    with pytest.raises(OutputError, match="written or changed by hand: --overwrite replaces it"):
        minitron.card(str(folder))
    write_card(folder)  # as evaluate --record does
    assert "changed by hand and is kept" in caplog.text
    assert path.read_text() == mine
    assert (folder / "kept.png").read_bytes() == picture
    minitron.card(str(folder), overwrite=True)
    assert "What I think" not in path.read_text()


@pytest.mark.parametrize(
    "text", ["", "# Mine\n", "---\nlicense: mit\n---\n\n# Mine\n", "---\n[\n---\n"]
)
def test_a_card_of_somebody_else_is_kept(text: str, folder: Path) -> None:
    (folder / "README.md").write_text(text)
    with pytest.raises(OutputError, match="by hand"):
        minitron.card(str(folder))
    assert text_of(folder) == text


def test_metadata_that_somebody_added_stay_while_the_text_is_written_anew(folder: Path) -> None:
    metadata_update_local(folder, {"license": "mit", "tags": ["minitron", "mine"]})
    page = read_page(folder / "README.md")
    assert (page.text_is_unchanged, page.metadata_is_unchanged) == (True, False)
    minitron.card(str(folder))
    data = ModelCard.load(folder / "README.md").data
    assert data.license == "mit"
    assert data.tags == ["minitron", "mine"]
    assert "kept.png" in text_of(folder)


def metadata_update_local(folder: Path, changed: dict[str, Any]) -> None:
    """As the Hub's own library writes metadata into a card."""
    assert metadata_update  # the same ModelCard round trip, without a repository
    card = ModelCard.load(folder / "README.md")
    for key, value in changed.items():
        setattr(card.data, key, value)
    card.save(folder / "README.md")


def test_an_untouched_card_is_written_over(folder: Path) -> None:
    minitron.card(str(folder))
    first = text_of(folder)
    minitron.card(str(folder))
    assert text_of(folder) == first
    assert read_page(folder / "README.md").metadata_is_unchanged


def rewrite(folder: Path, **changed: Any) -> None:
    """Change keys of a folder's minitron.json."""
    path = folder / "minitron.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "minitron.json").unlink(), "has no minitron.json"),
        (lambda f: (f / "minitron.json").write_text("{"), "minitron.json is not JSON"),
        (lambda f: (f / "minitron.json").write_text("{}"), "minitron.json has no command"),
        (lambda f: rewrite(f, command="merge"), "names the command 'merge'"),
        (lambda f: rewrite(f, source=3), "says source: 3; it must be an object"),
        (
            lambda f: rewrite(f, source={"name": "a"}),
            "minitron.json has no source.hidden_size",
        ),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text(""), "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda f: (f / "training.jsonl").write_text("{"), "training.jsonl is damaged"),
        (shutil.rmtree, "is not a folder"),
    ],
)
def test_a_folder_that_has_no_story_is_one_line(
    damage: Any, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(folder)
    with pytest.raises(SourceError, match=message):
        minitron.card(str(folder))
    with pytest.raises(SystemExit) as ended:
        cli.main(["card", str(folder)])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_an_embedded_models_card_is_not_written() -> None:
    with pytest.raises(SourceError, match="^tiny is an embedded model, which is not written to: "):
        minitron.card("tiny")


def test_the_command_prints_where_the_card_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["card", str(folder)])
    assert capsys.readouterr().out == f"{folder / 'README.md'}: written\n"


def test_the_picture_shows_what_is_kept(folder: Path, tmp_path: Path) -> None:
    record = json.loads((folder / "minitron.json").read_text())
    kept, before = record["kept"], record["source"]
    maps = kept_maps(kept, before)
    assert set(maps) == {"hidden", "ffn", "heads"}
    layers = list(indices_of(kept["layers"], 6))
    gone = sorted({*range(6)} - {*layers})
    assert maps["hidden"].shape == (1, 128)  # one for the whole network: drawn once
    for axis in ("ffn", "heads"):
        assert maps[axis].shape[0] == 6
        assert not maps[axis][gone].any(), axis
    assert maps["heads"][layers].sum(1).tolist() == [4] * 4
    assert maps["heads"][layers[1]].nonzero()[0].tolist() == list(indices_of(kept["heads"][1], 8))
    assert maps["ffn"][layers].mean(1) == pytest.approx([200 / 1024] * 4)
    assert maps["hidden"][0].mean() == pytest.approx(96 / 256)
    assert draw_kept(tmp_path / "one.png", kept, before, record["target"])
    assert draw_kept(tmp_path / "two.png", kept, before, record["target"])
    one, two = (tmp_path / "one.png").read_bytes(), (tmp_path / "two.png").read_bytes()
    assert one == two
    assert one.startswith(b"\x89PNG")


def test_depth_alone_has_a_picture_too() -> None:
    maps = kept_maps({"layers": "0-1,3"}, {"num_hidden_layers": 4})
    assert maps["layers"][:, 0].tolist() == [1, 1, 0, 1]


def test_without_matplotlib_there_is_the_table_only_and_it_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("minitron.records.kept_picture.find_spec", lambda name: None)
    (folder / "kept.png").unlink()
    caplog.set_level("INFO")
    minitron.card(str(folder))
    assert "pip install 'minitron[plots]'" in caplog.text
    assert "kept.png" not in text_of(folder)
    assert not (folder / "kept.png").exists()
    assert "| hidden_size | 256 | 96 | 38% |" in text_of(folder)


@pytest.mark.parametrize("name", zoo())
def test_the_cards_of_the_zoo_are_as_they_are_written_today(name: str, tmp_path: Path) -> None:
    place = zoo()[name]
    copy = Path(shutil.copytree(place, tmp_path / name))
    write_card(copy, overwrite=True)
    assert text_of(copy) == text_of(place), "run make cards"


def test_a_damaged_record_of_the_source_does_not_stop_a_pruning(
    folder: Path, both_folders: Path, tmp_path: Path
) -> None:
    (folder / "minitron.json").write_text("{")
    corpus = str(both_folders / "text.npy")
    minitron.prune(str(folder), str(tmp_path / "out"), num_hidden_layers=3, corpus=corpus)
    assert "Pruned from `small`" in text_of(tmp_path / "out")


def test_errors_are_ours() -> None:
    assert issubclass(OutputError, MinitronError)


def test_a_foreign_record_writes_no_html_link_or_fence_into_the_card(folder: Path) -> None:
    bad = "<img src=x onerror=alert(1)> [a](http://b) `c` | d\n```\n<script>\x1b[31m"
    record = json.loads((folder / "minitron.json").read_text())
    source = {**record["source"], "name": bad}
    importance = {**record["importance"], "corpus": bad, "scores": bad, "tokens": 3}
    results = {"measured": bad, "columns": [bad], "rows": [{"name": bad, "values": [bad]}]}
    rewrite(folder, source=source, importance=importance, results=results)
    (folder / "README.md").unlink()
    minitron.card(str(folder))
    body = text_of(folder).partition("\n---\n")[2]
    fenced = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    outside = fenced.sub("", body).partition("<!--")[0]
    assert "‹img src=x" in outside
    assert not re.search(r"<|\x1b|\]\(http", outside)
    assert "```" not in outside
    assert all(line.count("|") in (0, 3, 5) for line in outside.splitlines())
