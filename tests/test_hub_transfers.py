"""From the Hub and back to it, over the wire: the main use of the product, and how it fails."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import minitron
import modeling_nemotron
from minitron.cli import main
from minitron.sources.opening import open_source, zoo
from tests.hub_repositories import Repository
from tests.hub_routes import Fault, Hub
from tests.hub_server import TOKEN, environment
from tests.nemo_files import megatron_tensors, nemo_settings, write_nemo_file
from tests.tiny import SIZES, edit_config, tiny_folder, tiny_model, write_text

# huggingface_hub's own, on every upload of a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
VOCABULARY = 4099
PROMPT = "To be or not to be,"
OLD_KEYS = {"kv_channels": SIZES["head_dim"], "rope_percent": 0.5}
NEW_KEYS = ("head_dim", "partial_rotary_factor", "rope_parameters", "rope_theta")

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def surroundings(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISABLE_SAFETENSORS_CONVERSION", "1")
    monkeypatch.chdir(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model in shards, with a tokenizer and terms."""
    folder = tmp_path_factory.mktemp("made") / "sharded"
    tiny_folder(folder, vocab_size=VOCABULARY, max_shard_size="400KB")
    for path in zoo()["tiny"].glob("tokenizer*"):
        shutil.copy(path, folder)
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n\n# Model\n")
    assert len(list(folder.glob("*.safetensors"))) == 3
    return contents(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "plays.txt"
    return str(write_text(path, ["To be or not to be, that is the question. " * 99]))


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must be refused; give the line it says."""

    def run(*arguments: object) -> str:
        before = set(tmp_path.iterdir()) | {tmp_path / "home"}
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert ended.value.code == 2
        assert printed.out == ""
        output = [line for line in printed.err.splitlines() if line.startswith("minitron: ")]
        assert printed.err.splitlines()[-1:] == output
        assert set(tmp_path.iterdir()) | {tmp_path / "home"} == before
        assert "hf_" not in printed.err
        return output[0].removeprefix("minitron: ")

    return run


# The first line of the README: a repository as nvidia/Minitron-8B-Base is


@pytest.fixture(scope="module")
def minitron_8b(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], ...]:
    """Its two revisions, scaled down: a pickle only, no generation_config, an empty LICENSE."""
    folder = tmp_path_factory.mktemp("made") / "minitron-8b"
    model = tiny_model(vocab_size=VOCABULARY, dtype=torch.bfloat16, partial_rotary_factor=0.5)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(zoo()["tiny"] / name, folder)
    (folder / "LICENSE").touch()
    (folder / "nemo").mkdir()
    (folder / "nemo" / "minitron-8b-base.nemo").write_bytes(b"\0not read")
    (folder / "README.md").write_text("---\nlicense: other\n---\n\n# Minitron 8B Base\n")
    later = contents(folder)
    edit_config(folder, remove=NEW_KEYS, **OLD_KEYS)
    return contents(folder), later


@pytest.fixture
def first_revision(hub: Hub, minitron_8b: tuple[dict[str, bytes], ...]) -> str:
    earlier, later = minitron_8b
    repository = hub.add("nvidia/Minitron-8B-Base", earlier)
    first = repository.branches["main"]
    hub.replace_files(repository, later)
    return first


def test_its_shape_is_that_of_the_real_one(minitron_8b: tuple[dict[str, bytes], ...]) -> None:
    earlier, later = (json.loads(files["config.json"]) for files in minitron_8b)
    assert later["head_dim"] != later["hidden_size"] // later["num_attention_heads"]
    assert OLD_KEYS.items() <= earlier.items()
    assert not set(NEW_KEYS) & set(earlier)
    assert minitron_8b[1]["LICENSE"] == b""
    assert not [n for n in minitron_8b[1] if n.endswith(".safetensors") or "generation" in n]


@pytest.mark.parametrize("which", ["first", "main"])
@pytest.mark.parametrize("auto", [False, True], ids=["our class", "AutoModel after register()"])
def test_it_loads_by_its_lower_case_id_and_generates(
    hub: Hub, first_revision: str, which: str, auto: bool
) -> None:
    revision = first_revision if which == "first" else "main"
    loader = AutoModelForCausalLM if auto else modeling_nemotron.NemotronForCausalLM
    modeling_nemotron.register()
    try:
        model = loader.from_pretrained("nvidia/minitron-8b-base", revision=revision)
    finally:
        modeling_nemotron.unregister()
    tokenizer = AutoTokenizer.from_pretrained("nvidia/minitron-8b-base", revision=revision)

    assert type(model) is modeling_nemotron.NemotronForCausalLM
    assert model.config.head_dim == SIZES["head_dim"]
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    reference = tiny_model(vocab_size=VOCABULARY, partial_rotary_factor=0.5)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(parameter.bfloat16())
        logits = model.float()(ids).logits
        assert torch.allclose(logits, reference(ids).logits, atol=1e-4)
    written = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert tokenizer.decode(written[0]).startswith(PROMPT)
    assert written.shape[1] > ids.shape[1]


@pytest.mark.parametrize("which", ["first", "main"])
def test_every_command_takes_it_by_id_and_revision(
    hub: Hub, first_revision: str, which: str, corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    suffix = f"@{first_revision}" if which == "first" else ""
    name = f"nvidia/minitron-8b-base{suffix}"

    main(["inspect", name, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["head_dim"] == SIZES["head_dim"]
    assert report["layout"] == "pytorch_model.bin"
    main(["generate", name, PROMPT, "--max-new-tokens", "3"])
    assert capsys.readouterr().out.startswith(PROMPT)
    main(["evaluate", name, "--corpus", corpus, "--seq-len", "32", "--json"])
    assert json.loads(capsys.readouterr().out)["loss"] > 1
    command = ["prune", name, "half", "--hidden-size", "21", "--corpus", corpus]
    main([*command, "--samples", "4", "--seq-len", "16"])

    assert minitron.inspect("half").hidden_size == 21
    assert minitron.inspect("half").layout == "safetensors"
    repository = hub.repository("model", "nvidia/Minitron-8B-Base")
    assert repository is not None
    record = json.loads(Path("half/minitron.json").read_text())
    pinned = first_revision if which == "first" else repository.branches["main"]
    assert record["source"]["revision"] == pinned
    assert json.loads(Path("half/config.json").read_text())["head_dim"] == SIZES["head_dim"]
    assert not hub.requests("GET", "nemo")
    whole = [seen for seen in hub.requests("GET", "/storage/") if "range" not in seen.headers]
    assert len(whole) == 2  # pytorch_model.bin, tokenizer.model


# Shards, revisions, round trips


def test_a_sharded_model_comes_down_once_and_converts_to_equal_bytes(
    hub: Hub, sharded: dict[str, bytes]
) -> None:
    hub.add("Some/Model", sharded)
    minitron.convert("some/model", "here")

    large = [n for n in sharded if n.endswith((".safetensors", "tokenizer.model"))]
    whole = [seen for seen in hub.requests("GET", "/storage/") if "range" not in seen.headers]
    fetched = [seen.path.removeprefix("/storage/") for seen in whole]
    assert sorted(fetched) == sorted(sha256(sharded[name]).hexdigest() for name in large)
    reference = tiny_model(vocab_size=VOCABULARY).state_dict()
    found = load_file("here/model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in reference.items())


@pytest.mark.parametrize("enough", [1 << 17, 64], ids=["in one piece", "in two"])
def test_inspecting_a_model_fetches_no_weights(
    hub: Hub, sharded: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, enough: int
) -> None:
    monkeypatch.setattr("minitron.files.hub_repository._BEGINNING", enough)
    hub.add("Some/Model", sharded)
    report = minitron.inspect("some/model")
    assert report.layout == "safetensors (sharded)"
    assert report.bytes == sum(t.nbytes for t in tiny_model(vocab_size=VOCABULARY).parameters())
    assert report.tokenizer == ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    asked = [seen.headers.get("range") for seen in hub.requests("GET", "/storage/")]
    assert len(asked) == 3 * (1 if enough > 64 else 2)
    assert None not in asked
    assert not hub.requests("GET", "/resolve/.*tokenizer")


def test_only_the_shards_that_are_needed_come_down(hub: Hub, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "made", vocab_size=VOCABULARY, max_shard_size="60KB")
    files = contents(folder) | {"tokenizer.json": b"{}"}
    index = json.loads(files["model.safetensors.index.json"])["weight_map"]
    hub.add("Some/Model", files)
    tensors = open_source("Some/Model").tensors
    layer = [name for name in tensors if name.startswith("model.layers.2.")]
    hub.seen.clear()
    expected = tiny_model(vocab_size=VOCABULARY).state_dict()
    assert all(torch.equal(tensors[name].read(), expected[name]) for name in layer)

    needed = {sha256(files[index[name]]).hexdigest() for name in layer}
    assert 1 <= len(needed) < len(set(index.values()))
    fetched = [seen.path.removeprefix("/storage/") for seen in hub.requests("GET", "/storage/")]
    assert sorted(fetched) == sorted(needed)


def test_a_file_that_the_hub_gives_only_whole_is_fetched(
    hub: Hub, sharded: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.serves_ranges = False
    hub.add("Some/Model", sharded)
    assert minitron.inspect("Some/Model").layout == "safetensors (sharded)"
    minitron.convert("Some/Model", "here")


def test_a_repository_that_changes_meanwhile_is_read_at_the_revision_seen_first(
    hub: Hub, sharded: dict[str, bytes]
) -> None:
    repository = hub.add("Some/Model", sharded)
    before = repository.branches["main"]
    source = open_source("Some/Model")
    changed = {n: c for n, c in sharded.items() if not n.endswith((".safetensors", ".model"))}
    hub.replace_files(repository, {**changed, "config.json": b"{}"})

    norm = source.tensors["model.norm.weight"].read()
    assert torch.equal(norm, tiny_model(vocab_size=VOCABULARY).model.norm.weight)
    assert source.revision == before
    assert {path.parent.name for path in source.companions.tokenizer_files()} == {before}


def test_a_pruned_model_is_uploaded_and_comes_down_by_branch_and_tag(
    hub: Hub, sharded: dict[str, bytes], corpus: str
) -> None:
    hub.add("Some/Model", sharded)
    options: dict[str, Any] = {"corpus": corpus, "samples": 4, "seq_len": 16}
    minitron.prune("Some/Model", "half", hidden_size=24, num_hidden_layers=3, **options)
    publication = minitron.push("half", "me/half", private=True, branch="try", tag="v1")

    repository = hub.repository("model", "me/half")
    assert isinstance(repository, Repository)
    assert repository.commits[publication.commit].title.startswith("Prune Some/Model: ")
    card = (Path("half") / "README.md").read_text()
    assert "base_model: Some/Model" in card
    assert "license: mit" in card
    for revision in ("try", "v1", publication.commit):
        report = minitron.inspect(f"me/half@{revision}")
        assert (report.hidden_size, report.num_hidden_layers) == (24, 3)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        here = AutoModelForCausalLM.from_pretrained("half")(ids).logits
        there = AutoModelForCausalLM.from_pretrained("me/half", revision="v1")(ids).logits
    assert torch.equal(here, there)


PRUNE = ("prune", "Some/Model", "half", "--hidden-size", "21", "--samples", "4", "--seq-len", "16")


def test_prune_pushes_its_result_to_a_private_repository(
    hub: Hub, sharded: dict[str, bytes], corpus: str
) -> None:
    hub.add("Some/Model", sharded)
    main([*PRUNE, "--corpus", corpus, "--push-to-hub", "half", "--private"])
    repository = hub.repository("model", "me/half")
    assert repository is not None
    assert repository.private is True
    files = repository.commits[repository.branches["main"]].files
    here = contents(Path("half"))
    assert {name: files[name].content for name in here} == here
    recipe = json.loads(here["minitron.json"])["recipe"]
    assert not {"push_to_hub", "private"} & set(recipe)


def test_a_destination_that_will_not_do_is_refused_before_anything_is_pruned(
    hub: Hub, sharded: dict[str, bytes], corpus: str, refused: Refused
) -> None:
    hub.add("Some/Model", sharded)
    prune = (*PRUNE, "--corpus", corpus)
    assert "Other/half does not exist, and me cannot" in refused(
        *prune, "--push-to-hub", "Other/half"
    )
    assert "--private has no effect without --push-to-hub" in refused(*prune, "--private")
    assert not hub.requests("GET", "/storage/")


def test_a_push_that_fails_leaves_what_was_pruned_and_says_how_to_push_it(
    hub: Hub, sharded: dict[str, bytes], corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("Some/Model", sharded)
    hub.fail(Fault("POST", "/commit/", status=500, times=9))
    with pytest.raises(SystemExit):
        main([*PRUNE, "--corpus", corpus, "--push-to-hub", "me/half"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("minitron: half is written but not pushed (the Hub fails (HTTP 500)")
    assert line.endswith(": minitron push half me/half")
    hub.faults.clear()
    assert minitron.push("half", "me/half").repo == "me/half"


def test_what_is_to_be_private_is_private_by_the_command_that_was_run_too(
    hub: Hub, sharded: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("Some/Model", sharded)
    hub.fail(Fault("POST", "/repos/create", status=500, times=9))
    prune = ["prune", "Some/Model", "a half", "--hidden-size", "21", "--scores", "random"]
    with pytest.raises(SystemExit):
        main([*prune, "--push-to-hub", "me/half", "--private"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(": minitron push 'a half' me/half --private")


def test_a_student_is_distilled_from_a_teacher_at_a_revision(
    hub: Hub, sharded: dict[str, bytes], corpus: str
) -> None:
    repository = hub.add("Some/Model", sharded)
    teacher = repository.branches["main"]
    hub.replace_files(repository, {**sharded, "note.md": b"later"})
    options: dict[str, Any] = {"corpus": corpus, "seq_len": 16, "steps": 1, "batch_size": 2}
    minitron.distill("Some/Model", "student", teacher=f"Some/Model@{teacher[:10]}", **options)
    record = json.loads(Path("student/minitron.json").read_text())
    assert record["source"]["revision"] == repository.branches["main"]
    assert record["teacher"]["revision"] == teacher


# A .nemo in a repository


NEMO = "Some/Family:nemo/small-base.nemo"


def nemo_file(path: Path, **options: Any) -> bytes:
    settings = nemo_settings(tokenizer={"library": "huggingface", "type": "some/tokenizer"})
    tensors = megatron_tensors(settings, vocab_size=304)
    content = write_nemo_file(path / "made.nemo", tensors, settings, **options).read_bytes()
    (path / "made.nemo").unlink()
    return content


@pytest.fixture
def family(hub: Hub, tmp_path: Path) -> Repository:
    """A repository that holds a `.nemo` in a folder, and no config.json."""
    files = {"nemo/small-base.nemo": nemo_file(tmp_path), "README.md": b"# Family"}
    return hub.add("Some/Family", files)


def test_a_nemo_in_a_repository_is_converted_at_its_revision(hub: Hub, family: Repository) -> None:
    revision = family.branches["main"]
    hub.replace_files(family, {})
    minitron.convert(f"Some/Family@{revision}:nemo/small-base.nemo", "here")
    record = json.loads(Path("here/minitron.json").read_text())
    assert record["source"]["name"] == NEMO
    assert record["source"]["revision"] == revision
    assert "base_model: Some/Family\n" in Path("here/README.md").read_text()
    assert len(hub.requests("GET", "/storage/")) == 1


@pytest.mark.parametrize("layout", ["state_dict", "torch_dist", "zarr"])
def test_a_nemo_in_a_repository_is_inspected_by_ranges(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.setattr("minitron.files.cached_file.BLOCK", 512)
    content = nemo_file(tmp_path, layout=layout)
    (tmp_path / "whole.nemo").write_bytes(content)
    hub.add("Some/Family", {"nemo/small-base.nemo": content})
    report, reference = minitron.inspect(NEMO), minitron.inspect("whole.nemo")

    assert report == reference
    ranges = [seen.headers["range"] for seen in hub.requests("GET", "/storage/")]
    pairs = [one.removeprefix("bytes=").split("-") for one in ranges]
    assert sum(int(last) + 1 - int(first) for first, last in pairs) < len(content) / 2
    assert not list(tmp_path.glob("home/**/*.nemo"))


def test_a_compressed_nemo_comes_whole(hub: Hub, tmp_path: Path) -> None:
    content = nemo_file(tmp_path, pack="tar.gz")
    assert content[:2] == b"\x1f\x8b"
    hub.add("Some/Family", {"nemo/small-base.nemo": content})
    assert minitron.inspect(NEMO).format == "nemo"
    assert list(tmp_path.glob("home/**/*.nemo"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Some/Family:nemo/large.nemo", "Some/Family has no nemo/large.nemo: check its path"),
        ("Some/Family:../small-base.nemo", "leads outside its repository"),
        ("Some/Family:/etc/small-base.nemo", "leads outside its repository"),
        ("Some/Family@v9:nemo/small-base.nemo", "Some/Family has no revision v9: check it"),
    ],
)
def test_a_nemo_that_is_not_in_a_repository_is_reported(
    family: Repository, refused: Refused, name: str, message: str
) -> None:
    assert message in refused("inspect", name)


# Where a transfer breaks off


@pytest.fixture
def model(hub: Hub, sharded: dict[str, bytes]) -> Repository:
    return hub.add("Some/Model", sharded)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("HEAD", "/resolve/", status=429, headers={"Retry-After": "1"}),
        Fault("HEAD", "/resolve/", status=500),
        Fault("GET", "/storage/", status=429, headers={"Retry-After": "1"}),
        Fault("GET", "/storage/", drop_after=100_000),
        Fault("GET", "/storage/", drop_after=0, times=3),
        Fault("GET", "/api/models/", status=429),
        Fault("GET", "/storage/", delay=0.2),
    ],
    ids=["head 429", "head 500", "get 429", "half", "nothing", "listing 429", "slow"],
)
def test_what_passes_is_waited_for(hub: Hub, model: Repository, fault: Fault) -> None:
    hub.fail(fault)
    minitron.convert("Some/Model", "here")
    assert fault.times == 0
    found = load_file("here/model.safetensors")
    assert torch.equal(found["lm_head.weight"], tiny_model(vocab_size=VOCABULARY).lm_head.weight)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("GET", "/storage/", drop_after=0, times=99), "Some/Model cannot be fetched: "),
        (Fault("GET", "/storage/", status=500, times=99), "Some/Model cannot be fetched: "),
        (Fault("HEAD", "/resolve/", status=500, times=99), "the Hub cannot be reached"),
        (Fault("GET", "/api/models/", drop_after=0, times=99), "Some/Model cannot be "),
    ],
    ids=["shard breaks off", "storage fails", "hub fails", "listing breaks off"],
)
def test_what_does_not_pass_is_one_line_and_leaves_nothing(
    hub: Hub, model: Repository, fault: Fault, message: str, refused: Refused, tmp_path: Path
) -> None:
    hub.fail(fault)
    line = refused("convert", "Some/Model", "here")
    assert message in line
    assert "http://" not in line  # the storage's addresses are signed
    blobs = [path for path in tmp_path.rglob("*.incomplete") if path.stat().st_size]
    assert blobs == []

    hub.faults.clear()
    minitron.convert("Some/Model", "here")


def test_a_shard_cut_short_in_the_cache_is_refused(
    hub: Hub, model: Repository, refused: Refused
) -> None:
    minitron.convert("Some/Model", "first")
    stored = open_source("Some/Model").tensors["lm_head.weight"]
    [whole] = stored.ranges() or ()
    shard = whole.path
    os.truncate(shard, os.path.getsize(shard) // 2)
    assert shard.name in refused("convert", "Some/Model", "here")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Some/Model@v9", "Some/Model has no revision v9: check it"),
        ("Some/Nothing", "Some/Nothing is neither a folder nor a repository you can see"),
        ("Some/Secret", "Some/Secret is neither a folder nor a repository you can see"),
        ("Some/Gated", "Some/Gated is gated: accept its terms on the Hub and log in"),
        ("Some/Empty", "Some/Empty has no config.json: it is not a transformers model"),
        ("some", "some does not exist; name a folder"),
        ("Some/Mod--el", "Some/Mod--el cannot be fetched: "),
    ],
)
def test_what_is_not_there_or_not_for_us_is_reported(
    hub: Hub, model: Repository, refused: Refused, name: str, message: str
) -> None:
    files = {"config.json": b"{}"}
    hub.add("Some/Secret", files, private=True)
    hub.add("Some/Gated", files, gated=True)
    hub.add("Some/Empty", {})
    assert message in refused("inspect", name)


def test_a_wrong_token_is_reported(
    hub: Hub, model: Repository, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "Some/Model" in refused("inspect", "Some/Model")


@pytest.mark.parametrize("file", ["../../escape.safetensors", "/etc/passwd", "..", "a/../b", ""])
@pytest.mark.parametrize("index", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_that_points_elsewhere_is_refused(
    hub: Hub, sharded: dict[str, bytes], refused: Refused, file: str, index: str
) -> None:
    weight_map = dict.fromkeys(tiny_model().state_dict(), file)
    tricky = json.dumps({"weight_map": weight_map}).encode()
    config = {"config.json": sharded["config.json"]}
    hub.add("Bad/Index", {**config, f"{index}.index.json": tricky})
    line = refused("inspect", "Bad/Index")
    assert f"Bad/Index/{index}.index.json names the shard {file!r}, no file of its folder" in line
    assert not hub.requests("GET", "escape|passwd")


class Payload:
    """A pickle that touches a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("beside", [True, False], ids=["beside the weights", "in place of one"])
def test_a_pickle_that_would_run_is_not_run(
    hub: Hub,
    sharded: dict[str, bytes],
    refused: Refused,
    tmp_path: Path,
    zipped: bool,
    beside: bool,
) -> None:
    touched = tmp_path / "touched"
    state: dict[str, Any] = dict(tiny_model(vocab_size=VOCABULARY).state_dict())
    state["extra" if beside else "model.norm.weight"] = Payload(touched)
    pickled = tmp_path / "payload.bin"
    torch.save(state, pickled, _use_new_zipfile_serialization=zipped)
    content = pickled.read_bytes()
    assert b"touch" in content
    pickled.unlink()
    hub.add("Bad/Pickle", {"config.json": sharded["config.json"], "pytorch_model.bin": content})
    if beside:
        main(["inspect", "Bad/Pickle"])
    else:
        assert "model.norm.weight" in refused("convert", "Bad/Pickle", "here")
    assert not touched.exists()


def test_offline_what_is_cached_still_opens_and_the_rest_is_reported(
    hub: Hub, model: Repository, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    minitron.convert("Some/Model", "here")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert minitron.inspect("Some/Model").head_dim == SIZES["head_dim"]
    assert "nor in the cache" in refused("inspect", "Some/Other")


@pytest.mark.slow
def test_no_token_is_written_anywhere(
    hub: Hub, model: Repository, corpus: str, tmp_path: Path
) -> None:
    """By processes of their own: prune from a private repository, push, mistake."""
    model.private = True
    hub.repositories.append(Repository("me/model", private=True))
    hub.replace_files(hub.repositories[-1], dict(_files(model)))
    commands = [
        f"prune me/model half --hidden-size 21 --samples 4 --seq-len 16 --corpus {corpus}",
        "push half me/half --private",
        "push half Other/half",
    ]
    output = []
    for command in commands:
        run = subprocess.run(
            [sys.executable, "-m", "minitron", *command.split()],
            env=environment(hub, tmp_path / "elsewhere", TOKEN),
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        output += [run.stdout, run.stderr]
        assert run.returncode == (2 if "Other" in command else 0), run.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"minitron.json", "README.md"} <= {path.name for path in written}
    assert not any(TOKEN.encode() in text for text in output)
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)


def _files(repository: Repository) -> Iterator[tuple[str, bytes]]:
    for name, blob in repository.commits[repository.branches["main"]].files.items():
        yield name, blob.content
