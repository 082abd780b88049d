"""Remaking gives the same bytes from minitron.json and the source alone, or says why it cannot."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import minitron
from minitron.cli import main
from minitron.errors import SourceError, TargetError
from minitron.sources.opening import zoo
from tests.hub_routes import Hub
from tests.nemo_files import megatron_tensors, nemo_settings, write_nemo_file
from tests.tiny import SIZES, tiny_folder

WIDTHS = {"hidden_size": 36, "intermediate_size": 50}
DEPTH = {"num_hidden_layers": 3}
Damage = Callable[[dict[str, Any]], object]
Refused = Callable[..., str]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the card, whose title is the folder's name."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "README.md"}


def record_alone(folder: Path, into: Path) -> Path:
    """A folder with the minitron.json of another and nothing else."""
    into.mkdir()
    shutil.copy(folder / "minitron.json", into)
    return into


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    ids = np.random.default_rng(1).integers(SIZES["vocab_size"], size=(8, 16))
    np.save(tmp_path / "ids.npy", ids)
    return tmp_path / "ids.npy"


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """A folder `out` of `source`, cut on every axis but the KV heads."""
    source = tiny_folder(tmp_path / "source")
    options = {**WIDTHS, **DEPTH, "num_attention_heads": 4, "scores": "random"}
    minitron.prune(str(source), str(tmp_path / "out"), **options)
    return tmp_path / "out"


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Remake into `again`, which must be refused; give the line it says."""

    def there() -> list[Path]:
        home = tmp_path / "home"  # what the Hub's own client keeps
        return sorted(p for p in tmp_path.rglob("*") if home not in (p, *p.parents))

    def run(folder: object, *flags: str) -> str:
        before = there()
        with pytest.raises(SystemExit) as ended:
            main(["remake", str(folder), str(tmp_path / "again"), *flags])
        printed = capsys.readouterr()
        assert ended.value.code == 2
        assert printed.out == ""
        lines = printed.err.splitlines()
        assert [line for line in lines if line.startswith("minitron: ")] == lines[-1:]
        assert there() == before
        return lines[-1].removeprefix("minitron: ")

    return run


def edited(folder: Path, damage: Damage) -> Path:
    """The same folder with another record."""
    path = folder / "minitron.json"
    record = json.loads(path.read_text())
    damage(record)
    path.write_text(json.dumps(record))
    return folder


BUDGET = {"multiple_of": 6, "max_candidates": 3, "seq_len": 16}


@pytest.mark.parametrize(
    "options",
    [
        {**WIDTHS, **DEPTH, "num_attention_heads": 4},
        {"num_key_value_heads": 1, "hidden_size": 40},
        {"num_hidden_layers": 2, "contiguous_layers": True},
        {"num_attention_heads": 4, "head_residual": True, **DEPTH},
        {**WIDTHS, **DEPTH, "num_attention_heads": 4, "steps": 2},
        {"params": "40K", **BUDGET},
        {"ratio": 0.5, "multiple_of": 1},
        {
            "ratio": 0.6,
            "memory": "1GiB",
            "head_residual": True,
            "contiguous_layers": True,
            **BUDGET,
        },
    ],
    ids=lambda options: " ".join(options),
)
@pytest.mark.parametrize("variant", ["nemotron-biased", "qwen3-biased-tied"])
def test_a_pruned_folder_comes_out_the_same_without_its_text(
    variant: str, options: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    source = tiny_folder(tmp_path / "source", variant, dtype=torch.bfloat16)
    options = {"corpus": str(corpus), "reconstruct": "none", **options}
    minitron.prune(str(source), str(tmp_path / "out"), **options)
    corpus.unlink()
    alone = record_alone(tmp_path / "out", tmp_path / "alone")
    made = minitron.remake(str(alone), str(tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    assert made.config == json.loads((tmp_path / "out" / "config.json").read_text())
    assert (tmp_path / "again" / "README.md").read_text().count("# again\n") == 1


def test_a_head_residual_is_remade_by_its_partners(corpus: Path, tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    options: dict[str, Any] = {"num_attention_heads": 4, "head_residual": True}
    options |= {"corpus": str(corpus), "reconstruct": "none"}
    minitron.prune(str(source), str(tmp_path / "out"), **options)
    edited(tmp_path / "out", lambda record: record["kept"].pop("partners"))
    with pytest.raises(SourceError, match="model.safetensors does not come out as"):
        minitron.remake(str(tmp_path / "out"), str(tmp_path / "again"))


def test_shards_are_those_on_record_whatever_is_usual_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_folder(tmp_path / "source", max_shard_size="50KB")
    with monkeypatch.context() as earlier:
        earlier.setattr("minitron.records.folder_writer.MAX_SHARD_SIZE", "30KB")
        minitron.prune(str(source), str(tmp_path / "out"), **WIDTHS, scores="random")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    minitron.remake(str(tmp_path / "out"), str(tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


@pytest.mark.parametrize(
    "options", [{}, {"dtype": "bfloat16"}, {"max_shard_size": "40KB"}, {"check": False}], ids=str
)
def test_a_converted_folder_comes_out_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", "llama")
    minitron.convert(str(source), str(tmp_path / "out"), **options)
    alone = record_alone(tmp_path / "out", tmp_path / "alone")
    minitron.remake(str(alone), str(tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


@pytest.mark.parametrize("pack", ["tar", "tar.gz"])
def test_a_nemo_is_converted_and_pruned_again(pack: str, tmp_path: Path) -> None:
    settings = nemo_settings(tokenizer={"library": "huggingface", "type": "some/tokenizer"})
    tensors = megatron_tensors(settings, vocab_size=304)
    source = str(write_nemo_file(tmp_path / "made.nemo", tensors, settings, pack=pack))
    minitron.convert(source, str(tmp_path / "out"))
    minitron.prune(source, str(tmp_path / "small"), num_hidden_layers=1, scores="random")
    for name in ("out", "small"):
        minitron.remake(str(tmp_path / name), str(tmp_path / f"{name}-again"))
        assert contents(tmp_path / f"{name}-again") == contents(tmp_path / name)


@pytest.mark.parametrize(("keep", "vocabulary"), [(False, 300), (True, 512)])
def test_the_padding_of_a_vocabulary_stays_as_it_was(
    keep: bool, vocabulary: int, tmp_path: Path
) -> None:
    source = Path(__file__).parent / "fixtures" / "nemo" / "ckpt_te_tp2pp2_bf16" / "model.nemo"
    minitron.convert(str(source), str(tmp_path / "out"), keep_vocab_padding=keep)
    made = minitron.remake(str(tmp_path / "out"), str(tmp_path / "again"))
    assert made.config["vocab_size"] == vocabulary
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_the_command_says_what_it_wrote(
    pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["remake", str(pruned), str(tmp_path / "again")])
    tensors = len(load_file(pruned / "model.safetensors"))
    out = tmp_path / "again"
    says = f"{out}: {tensors} tensors, the same bytes\n\nNext:\n  minitron inspect {out}\n"
    assert capsys.readouterr().out == says


def test_a_local_folder_precedes_one_of_the_zoo_that_has_its_name(
    pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pruned.rename("tiny-half")
    minitron.remake("tiny-half", "again")
    assert contents(Path("again")) == contents(Path("tiny-half"))


def test_results_that_were_recorded_since_stay(pruned: Path, tmp_path: Path) -> None:
    results = {"measured": "By hand.", "columns": ["loss"], "rows": []}
    edited(pruned, lambda record: record.update(results=results))
    minitron.remake(str(pruned), str(tmp_path / "again"))
    assert json.loads((tmp_path / "again" / "minitron.json").read_text())["results"] == results


# Another source


def change(folder: Path, row: int) -> None:
    """Change one number of a model, in the last column of a row of its embedding."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][row] += 1
    save_file(tensors, path, metadata={"format": "pt"})


def test_another_model_in_its_place_is_refused(
    pruned: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.rmtree(tmp_path / "source")
    tiny_folder(tmp_path / "source", seed=1)
    message = refused(pruned)
    assert message.startswith(f"{tmp_path / 'source'} is not the model that {pruned}/minitron.json")


def test_a_change_that_the_digest_does_not_see_is_refused_too(
    pruned: Path, tmp_path: Path, refused: Refused
) -> None:
    change(tmp_path / "source", row=77)
    alone = record_alone(pruned, tmp_path / "alone")
    message = refused(alone)
    assert message == (
        f"model.safetensors does not come out as {alone}/minitron.json records: "
        f"{tmp_path / 'source'} has changed since"
    )


def test_weights_stored_beside_the_record_are_compared_whole(
    pruned: Path, tmp_path: Path, refused: Refused
) -> None:
    change(pruned, row=50)
    assert "model.safetensors does not come out as" in refused(pruned)
    alone = record_alone(pruned, tmp_path / "alone")
    minitron.remake(str(alone), str(tmp_path / "again"))


def test_a_source_that_moved_is_named(pruned: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    message = refused(pruned)
    assert message.startswith(f"the source of {pruned}/minitron.json cannot be opened: ")
    assert "--source names it" in message
    tiny_folder(tmp_path / "other", seed=1)
    assert "is not the model" in refused(pruned, "--source", str(tmp_path / "other"))
    assert refused(pruned, "--source", "no/where/at/all").startswith("no/where/at/all does not")
    elsewhere = str(tmp_path / "elsewhere")
    minitron.remake(str(pruned), str(tmp_path / "again"), source=elsewhere)
    assert contents(tmp_path / "again") == contents(pruned)


# What training made


def test_a_distilled_folder_is_refused_but_what_it_began_with_is_remade(
    pruned: Path, corpus: Path, tmp_path: Path, refused: Refused
) -> None:
    teacher, out = str(tmp_path / "source"), tmp_path / "distilled"
    options: dict[str, Any] = {"corpus": str(corpus), "steps": 1, "batch_size": 2}
    minitron.distill(str(pruned), str(out), teacher=teacher, **options)
    minitron.train(str(tmp_path / "trained"), init=str(out), **options)
    before = contents(pruned)
    shutil.rmtree(pruned)
    for folder, command in (("distilled", "distill"), ("trained", "train")):
        message = refused(tmp_path / folder)
        assert message == (
            f"{tmp_path / folder} was made by minitron {command}: trained weights cannot be "
            "remade without training; --before-training remakes the model that it began with"
        )
        again = tmp_path / f"{folder}-again"
        minitron.remake(str(tmp_path / folder), str(again), before_training=True)
        assert contents(again) == before


def test_training_that_does_not_record_its_initial_model_is_refused(
    tmp_path: Path, refused: Refused
) -> None:
    message = "tiny was made by minitron train: trained weights cannot be remade without training; "
    message += "its minitron.json has the recipe to do that again"
    assert refused("tiny") == message
    assert refused("tiny", "--before-training") == message


def test_quickstart_has_to_run_again(tmp_path: Path, refused: Refused) -> None:
    folder = record_alone(zoo()["tiny"], tmp_path / "half")
    edited(folder, lambda record: record.update(command="quickstart"))
    message = f"minitron quickstart {tmp_path / 'again'} --seed 1 trains them again"
    assert message in refused(folder)


def test_before_training_is_for_what_was_trained(pruned: Path, refused: Refused) -> None:
    assert "was not trained: do without" in refused(pruned, "--before-training")


# Bad records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no minitron.json: the folders of prune, convert --to hub, train,"),
        ("{", "minitron.json is not JSON"),
        ("[" * 100_000, "minitron.json is not JSON"),
        ("\x80", "minitron.json is not JSON"),
        ("[]", "was not written by minitron"),
        ('{"schema": "1"}', "was not written by minitron"),
        (
            '{"schema": 2}',
            "has schema 2, and this version of minitron reads 1: pip install --upgrade",
        ),
        ("{}", "has no readable command: it is damaged, or was written by an earlier minitron"),
        ('{"command": "merge"}', "names the command 'merge': it was not written here"),
        ('{"command": "train", "source": 3}', "was made by minitron train"),
    ],
)
def test_a_record_that_is_none_is_refused(
    text: str | None, message: str, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "folder").mkdir()
    if text is not None:
        (tmp_path / "folder" / "minitron.json").write_bytes(text.encode("latin-1"))
    line = refused(tmp_path / "folder")
    assert message in line
    assert line.startswith(f"{tmp_path / 'folder'}")


def set_value(*keys: Any, value: Any) -> Damage:
    """Set one value of a record; a value of None takes the key away."""

    def damage(record: dict[str, Any]) -> None:
        inner: Any = record
        for key in keys[:-1]:
            inner = inner[key]
        if value is None:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = value

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_value("source", value=None), "no readable source.name"),
        (set_value("source", "digest", value=None), "no readable source.digest"),
        (set_value("source", "digest", value="0"), "is not the model that"),
        (set_value("source", "name", value=3), "no readable source.name"),
        (set_value("source", "revision", value="v9"), "cannot be opened"),
        (set_value("weights", value=None), "no readable weights.max_shard_size"),
        (set_value("weights", "max_shard_size", value="much"), "has max_shard_size 'much'"),
        (set_value("weights", "files", value={}), "does not come out as"),
        (set_value("target", value=[]), "no readable target.hidden_size"),
        (set_value("target", "hidden_size", value=True), "no readable target.hidden_size"),
        (
            set_value("target", "hidden_size", value=35),
            "kept.hidden must be 35 of the indices below 42",
        ),
        (set_value("target", "hidden_size", value=99), "is damaged: hidden_size 99 is larger"),
        (
            set_value("target", "num_attention_heads", value=5),
            "is damaged: num_attention_heads is 5",
        ),
        (set_value("target", "head_dim", value=4), "is damaged: head_dim cannot be pruned"),
        (set_value("kept", value=None), "no readable kept"),
        (set_value("kept", "hidden", value=None), "kept.hidden must be 36"),
        (set_value("kept", "hidden", value=[1, 2]), "kept.hidden must be 36"),
        (set_value("kept", "hidden", value="0-99999999999999"), "kept.hidden must be 36"),
        (set_value("kept", "hidden", value="0-34,34"), "kept.hidden must be 36"),
        (set_value("kept", "hidden", value="7-42"), "kept.hidden must be 36"),
        (set_value("kept", "hidden", value="9" * 5000), "kept.hidden must be 36"),
        (set_value("kept", "layers", value="0,2,1"), "kept.layers must be 3"),
        (set_value("kept", "layers", value="0-1"), "kept.layers must be 3"),
        (set_value("kept", "ffn", value="0-49"), "kept.ffn must be 50"),
        (set_value("kept", "ffn", 1, value="0-50"), "kept.ffn must be 50"),
        (set_value("kept", "ffn", value=["0-49"]), "kept.ffn must be 50"),
        (set_value("kept", "heads", 0, value="x"), "kept.heads must be 4"),
        (set_value("kept", "partners", value=3), "kept.partners must be [3, 4] heads"),
        (
            set_value("kept", "partners", value=[[0, 1, 2]] * 3),
            "kept.partners must be [3, 4] heads",
        ),
        (
            set_value("kept", "partners", value=[[0, 1, 2, 6]] * 3),
            "kept.partners must be [3, 4] heads",
        ),
        (
            set_value("kept", "partners", value=[[0, 1, 2, "a"]] * 3),
            "kept.partners must be [3, 4] heads",
        ),
        (set_value("kept", "partners", value=[[0, 1, 2, 3]]), "kept.partners must be [3, 4] heads"),
        (
            set_value("importance", value=3),
            "minitron.json says importance: 3; it must be an object",
        ),
        (set_value("source", "metadata", value="mit"), "minitron.json says source.metadata: 'mit'"),
        (set_value("source", "hidden_size", value=0), "minitron.json has source.hidden_size 0"),
        (set_value("recipe", "seed", value="\ud800"), "minitron.json is not JSON"),
    ],
    ids=lambda given: given if isinstance(given, str) else "damage",
)
def test_a_damaged_record_is_refused(
    damage: Damage, message: str, pruned: Path, refused: Refused
) -> None:
    line = refused(edited(pruned, damage))
    assert message in line
    assert "minitron.json" in line


def test_a_damaged_record_of_a_conversion_is_refused(tmp_path: Path, refused: Refused) -> None:
    minitron.convert(str(tiny_folder(tmp_path / "source")), str(tmp_path / "out"))
    damage = set_value("recipe", "dtype", value="silly")
    assert "has recipe.dtype 'silly'" in refused(edited(tmp_path / "out", damage))


def test_an_output_that_is_there_is_left_alone(pruned: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(minitron.MinitronError, match="there exists already"):
        minitron.remake(str(pruned), str(tmp_path / "there"))
    assert not list((tmp_path / "there").iterdir())


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, refused: Refused) -> None:
    assert "nowhere at all does not exist" in refused("nowhere at all")
    (tmp_path / "file").touch()
    assert "has no minitron.json" in refused(tmp_path / "file")


def test_a_trained_folder_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(TargetError):
        minitron.remake("tiny", str(tmp_path / "again"))


# From the Hub


def test_a_folder_on_the_hub_is_remade_from_the_revision_it_was_made_from(
    hub: Hub, tmp_path: Path
) -> None:
    source = tiny_folder(tmp_path / "source", vocab_size=103)
    repository = hub.add("Some/Model", {p.name: p.read_bytes() for p in source.iterdir()})
    minitron.prune("some/model", str(tmp_path / "out"), **WIDTHS, scores="random")
    hub.add("me/half", contents(tmp_path / "out"))
    shutil.rmtree(source)
    other = tiny_folder(tmp_path / "source", seed=1, vocab_size=103)
    hub.replace_files(repository, {p.name: p.read_bytes() for p in other.iterdir()})
    shutil.rmtree(tmp_path / "home")
    hub.seen.clear()

    minitron.remake("me/half", str(tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    assert not hub.requests("GET", "me/half/resolve/.*safetensors")
    assert len(hub.requests("GET", "Some/Model/resolve/.*/model.safetensors|/storage/")) > 0


@pytest.mark.parametrize("command", ["prune", "convert"])
def test_with_little_disk_no_weights_are_stored(hub: Hub, tmp_path: Path, command: str) -> None:
    source = tiny_folder(tmp_path / "source", vocab_size=103)
    hub.add("Some/Model", {p.name: p.read_bytes() for p in source.iterdir()})
    out, again = str(tmp_path / "out"), str(tmp_path / "again")
    if command == "prune":
        minitron.prune("Some/Model", out, **WIDTHS, scores="random")
    else:
        minitron.convert("Some/Model", out, dtype="bfloat16")
    shutil.rmtree(tmp_path / "home")

    minitron.remake(out, again, low_disk=True)
    assert contents(Path(again)) == contents(Path(out))
    stored = [path.stat().st_size for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert stored
    assert max(stored) < (source / "model.safetensors").stat().st_size


def test_what_the_hub_does_not_have_is_refused(hub: Hub, pruned: Path, refused: Refused) -> None:
    hub.add("me/bare", {"config.json": b"{}"})
    assert "me/bare has no minitron.json" in refused("me/bare")
    assert "me/nothing is neither a folder nor" in refused("me/nothing")
    hub.add("me/half", contents(edited(pruned, set_value("source", "name", value="Some/Gone"))))
    message = refused("me/half")
    assert message.startswith("the source of me/half/minitron.json cannot be opened: Some/Gone")
