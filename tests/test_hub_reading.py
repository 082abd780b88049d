"""What of a repository comes to this machine, how often, and whether it came whole."""

import json
import logging
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, snapshot_download

import minitron
from minitron.cli import main
from minitron.errors import ArchitectureError, MinitronError, SourceError
from minitron.sources.loading import hub_config, load_model, load_tokenizer
from minitron.sources.opening import open_source, zoo
from tests.gguf_files import model_file
from tests.hub_repositories import Account, Repository
from tests.hub_routes import Answer, Fault, Hub, Request
from tests.hub_server import serving, talk_to
from tests.nemo_files import megatron_tensors, nemo_settings, write_nemo_file
from tests.tiny import pickled_folder, tiny_folder, tiny_model

VOCABULARY = 303
NAME = "Some/Model"
PRUNING: dict[str, Any] = {"corpus": "random", "samples": 4, "seq_len": 16}
Files = dict[str, bytes]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        hub.accounts["hf_reads"] = Account("me")
        talk_to(hub, monkeypatch, tmp_path / "home", "hf_reads")
        (tmp_path / "scratch").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
        # So small a model would come with its header, or in one window.
        monkeypatch.setattr("minitron.files.hub_repository._BEGINNING", 64)
        monkeypatch.setattr("minitron.files.cached_file.BLOCK", 512)
        monkeypatch.setattr("minitron.files.cached_file.WINDOW", 12_000)
        monkeypatch.setattr("minitron.files.cached_file.SMALL", 200)
        monkeypatch.chdir(tmp_path)
        yield hub


def contents(folder: Path) -> Files:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def sharded_files(folder: Path, vocab_size: int, max_shard_size: str) -> Files:
    """A model in several shards, and one with nothing that is needed."""
    tiny_folder(folder, vocab_size=vocab_size, dtype=torch.bfloat16, max_shard_size=max_shard_size)
    files = contents(folder)
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = "leftovers.safetensors"
    header = b'{"model.layers.0.self_attn.rotary_emb.inv_freq":'
    header += b'{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    files["leftovers.safetensors"] = len(header).to_bytes(8, "little") + header + bytes(16)
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    return files


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return sharded_files(tmp_path_factory.mktemp("made") / "sharded", VOCABULARY, "26KB")


@pytest.fixture(scope="module")
def with_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Files:
    files = sharded_files(tmp_path_factory.mktemp("made") / "sharded", 4099, "60KB")
    return {**files, **{path.name: path.read_bytes() for path in zoo()["tiny"].glob("tokenizer*")}}


@pytest.fixture(scope="module")
def pickled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Files]:
    """The same in so many files of torch.save."""

    def make(shards: int) -> Files:
        folder = tmp_path_factory.mktemp("made") / "pickled"
        return contents(
            pickled_folder(folder, shards=shards, vocab_size=VOCABULARY, dtype=torch.bfloat16)
        )

    return make


def shards_of(files: Files) -> dict[str, str]:
    """The weight files by the sha256 that the storage calls them by."""
    weights = {name: content for name, content in files.items() if name.endswith(("rs", ".bin"))}
    return {sha256(content).hexdigest(): name for name, content in weights.items()}


def came_whole(hub: Hub, files: Files) -> Counter[str]:
    """How often each weight file was asked for without a range."""
    shards = shards_of(files)
    asked = [seen for seen in hub.requests("GET", "/storage/") if "range" not in seen.headers]
    names = [shards.get(seen.path.removeprefix("/storage/")) for seen in asked]
    return Counter(name for name in names if name is not None)


def ranges_of(hub: Hub, files: Files) -> list[tuple[str, int, int]]:
    """The ranges of weight files that were asked for: file, first byte, last byte + 1."""
    shards, found = shards_of(files), []
    for seen in hub.requests("GET", "/storage/"):
        name = shards.get(seen.path.removeprefix("/storage/"))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", seen.headers.get("range", ""))
        if name is not None and asked is not None:
            found.append((name, int(asked[1]), int(asked[2]) + 1))
    return found


def on_disk(root: Path, files: Files) -> list[Path]:
    """Whatever under `root` is as large as the smallest shard, but for what is being written."""
    smallest = min(len(files[name]) for name in shards_of(files).values() if "left" not in name)
    there = [*(root / "scratch").rglob("*"), *(root / "home").rglob("*")]
    return [path for path in there if path.is_file() and path.stat().st_size >= smallest]


def watched(hub: Hub, monkeypatch: pytest.MonkeyPatch, look: Callable[[], None]) -> None:
    """Call `look` at every request for weights."""
    answer = hub.answer

    def looking(request: Request) -> Answer:
        if "/storage/" in request.path:
            look()
        return answer(request)

    monkeypatch.setattr(hub, "answer", looking)


# Once, and only what is needed


@pytest.mark.parametrize("to", ["hub", "nemo", "nemo2", "trtllm"])
def test_converting_fetches_each_shard_once_and_none_without_need(
    hub: Hub, with_tokenizer: Files, to: Any
) -> None:
    hub.add(NAME, with_tokenizer)
    minitron.convert(NAME, "out", to=to)
    needed = set(shards_of(with_tokenizer).values()) - {"leftovers.safetensors"}
    assert len(needed) > 3
    assert came_whole(hub, with_tokenizer) == dict.fromkeys(needed, 1)


@pytest.mark.parametrize(
    "sizes",
    [{"hidden_size": 24}, {"num_hidden_layers": 3}, {"hidden_size": 21, "steps": 2}],
    ids=["width", "depth", "in steps"],
)
def test_pruning_fetches_each_shard_once_although_it_measures_first(
    hub: Hub, sharded: Files, sizes: dict[str, Any]
) -> None:
    hub.add(NAME, sharded)
    minitron.prune(NAME, "out", **PRUNING, **sizes)
    needed = set(shards_of(sharded).values()) - {"leftovers.safetensors"}
    assert came_whole(hub, sharded) == dict.fromkeys(needed, 1)


def test_what_is_in_the_cache_does_not_come_again(hub: Hub, sharded: Files) -> None:
    hub.add(NAME, sharded)
    minitron.convert(NAME, "one")
    hub.seen.clear()
    minitron.convert(NAME, "two", low_disk=True)
    minitron.prune(NAME, "three", **PRUNING, hidden_size=24)
    assert not came_whole(hub, sharded)
    assert {name for name, _, _ in ranges_of(hub, sharded)} == {"leftovers.safetensors"}


# With little disk


@pytest.mark.parametrize("layout", ["safetensors", "a pickle", "pickles"])
@pytest.mark.parametrize(
    "command",
    [
        ["convert", NAME],
        ["convert", NAME, "--dtype", "float32", "--max-shard-size", "50KB"],
        ["convert", NAME, "--to", "trtllm"],
        ["prune", NAME, "--corpus", "random", "--samples", "4", "--seq-len", "16"]
        + ["--hidden-size", "21", "--num-attention-heads", "4", "--head-residual"],
    ],
    ids=["convert", "cast", "trtllm", "prune"],
)
def test_with_little_disk_the_same_is_written_and_no_shard_is_ever_here(
    hub: Hub,
    sharded: Files,
    pickled: Callable[[int], Files],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    layout: str,
    command: list[str],
) -> None:
    monkeypatch.setattr("minitron.files.tensor_stream.PIECE_BYTES", 1000)
    files = sharded if layout == "safetensors" else pickled(1 if layout == "a pickle" else 3)
    hub.add(NAME, files)
    seen: list[Path] = []
    headers_read: list[bool] = []

    def look() -> None:
        if any(tmp_path.glob("*.partial")):  # a stand-in for a pickle is as large as it
            headers_read.append(True)
            seen.extend(on_disk(tmp_path, files))

    watched(hub, monkeypatch, look)
    main([command[0], NAME, "out", *command[2:], "--low-disk"])
    assert headers_read
    assert seen == on_disk(tmp_path, files) == []
    assert not came_whole(hub, files)

    little = contents(Path("out"))
    for folder in ("home", "out"):
        shutil.rmtree(tmp_path / folder)
    main([command[0], NAME, "out", *command[2:]])
    assert came_whole(hub, files)
    assert contents(Path("out")) == little


def test_with_little_disk_each_byte_of_a_weight_comes_once(
    hub: Hub, sharded: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.files.cached_file.SMALL", 1)
    # The rows by which the model is known come again.
    monkeypatch.setattr("minitron.model.source.Source.digest", "")
    monkeypatch.setattr("minitron.files.tensor_stream.PIECE_BYTES", 1000)
    hub.add(NAME, sharded)
    minitron.convert(NAME, "out", low_disk=True)
    headers = {
        name: 8 + int.from_bytes(sharded[name][:8], "little")
        for name in shards_of(sharded).values()
    }
    came = sorted(one for one in ranges_of(hub, sharded) if one[1] >= headers[one[0]])
    assert all(
        one[0] != two[0] or one[2] <= two[1] for one, two in zip(came, came[1:], strict=False)
    )
    weights = sum(t.nbytes for t in tiny_model(vocab_size=VOCABULARY).parameters()) // 2
    assert sum(stop - start for _, start, stop in came) == weights
    assert "leftovers.safetensors" not in {name for name, _, _ in came}


def test_with_little_disk_a_dropped_layer_does_not_come(
    hub: Hub, sharded: Files, tmp_path: Path
) -> None:
    hub.add(NAME, sharded)
    minitron.measure_importance(NAME, "scores.safetensors", **PRUNING)
    shutil.rmtree(tmp_path / "home")
    hub.seen.clear()
    minitron.prune(NAME, "out", importance="scores.safetensors", num_hidden_layers=2, low_disk=True)
    kept = json.loads(Path("out/minitron.json").read_text())["kept"]["layers"]
    assert kept.startswith("0-1")  # of four layers
    name = "model.layers.2.mlp.up_proj.weight"
    index = json.loads(sharded["model.safetensors.index.json"])["weight_map"]
    stored = open_source(NAME, low_disk=True).tensors[name]
    asked = [one for one in ranges_of(hub, sharded) if one[0] == index[name]]
    begin = stored.file.file.start  # type: ignore[attr-defined]
    came = sum(
        max(0, min(stop, begin + stored.nbytes) - max(start, begin)) for _, start, stop in asked
    )
    assert 0 < came <= 3 * 42 * 2  # the row by which the model is known


@pytest.mark.parametrize("how", ["fails", "breaks off"])
def test_with_little_disk_an_interruption_leaves_nothing(
    hub: Hub,
    sharded: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    hub.add(NAME, sharded)
    status, drop = (500, None) if how == "fails" else (None, 10)
    armed: list[bool] = []

    def look() -> None:
        if any(tmp_path.glob("*.partial/model*")) and not armed:
            armed.append(True)
            hub.fail(Fault("GET", "/storage/", status=status, drop_after=drop, times=999))

    watched(hub, monkeypatch, look)
    with pytest.raises(SystemExit) as ended:
        main(["convert", NAME, "out", "--low-disk"])
    assert armed
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith(f"minitron: {NAME} cannot be fetched: ")
    )
    assert {path.name for path in tmp_path.iterdir()} == {"home", "scratch"}
    assert on_disk(tmp_path, sharded) == list((tmp_path / "scratch").iterdir()) == []

    hub.faults.clear()
    minitron.convert(NAME, "out", low_disk=True)


def test_with_little_disk_what_passes_is_waited_for(hub: Hub, sharded: Files) -> None:
    hub.add(NAME, sharded)
    source = open_source(NAME, low_disk=True)
    tensor = source.tensors["model.norm.weight"]
    fault = Fault("GET", "/storage/", drop_after=5, times=2)
    hub.fail(fault)
    expected = tiny_model(vocab_size=VOCABULARY, dtype=torch.bfloat16).model.norm.weight
    assert torch.equal(tensor.read(), expected)
    assert fault.times == 0


def test_with_little_disk_a_repository_that_changes_is_read_as_it_was(
    hub: Hub, sharded: Files
) -> None:
    repository = hub.add(NAME, sharded)
    source = open_source(NAME, low_disk=True)
    weights = {name: bytes(len(sharded[name])) for name in shards_of(sharded).values()}
    hub.replace_files(repository, weights)
    expected = tiny_model(vocab_size=VOCABULARY, dtype=torch.bfloat16).state_dict()
    name = "model.layers.2.mlp.up_proj.weight"
    assert torch.equal(source.tensors[name].read(), expected[name])


def test_with_little_disk_what_comes_only_whole_is_refused(hub: Hub, sharded: Files) -> None:
    hub.serves_ranges = False
    hub.add(NAME, sharded)
    with pytest.raises(SourceError, match=r"can be had only whole: do it without --low-disk"):
        minitron.convert(NAME, "out", low_disk=True)
    with pytest.raises(SourceError, match=r"can be had only whole: do it without --low-disk"):
        minitron.convert(f"{NAME}:nemo/model.nemo", "out", low_disk=True)
    assert not came_whole(hub, sharded)


def test_with_little_disk_a_missing_shard_is_named(hub: Hub, sharded: Files) -> None:
    missing = sorted(shards_of(sharded).values())[3]
    hub.add(NAME, {name: content for name, content in sharded.items() if name != missing})
    with pytest.raises(SourceError, match=rf"{NAME} has no {missing}, which its index names"):
        minitron.convert(NAME, "out", low_disk=True)


# Storages that answer a range in their own way


def altered(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, alter: Callable[[Request, Answer], Answer]
) -> None:
    """Change what is answered to every request for a range of weights."""
    answer = hub.answer

    def altering(request: Request) -> Answer:
        given = answer(request)
        is_range = "/storage/" in request.path and "range" in request.headers
        return alter(request, given) if is_range else given

    monkeypatch.setattr(hub, "answer", altering)


def without_content_range(request: Request, given: Answer) -> Answer:
    return replace(given, headers={k: v for k, v in given.headers.items() if k != "Content-Range"})


def without_the_size(request: Request, given: Answer) -> Answer:
    message = re.sub(r"/\d+$", "/*", given.headers["Content-Range"])
    return replace(given, headers={**given.headers, "Content-Range": message})


def one_byte_before(request: Request, given: Answer) -> Answer:
    first, last, size = map(int, re.findall(r"\d+", given.headers["Content-Range"]))
    message = f"bytes {abs(first - 1)}-{abs(last - 1)}/{size}"
    return replace(given, body=bytes(len(given.body)), headers={"Content-Range": message})


@pytest.mark.parametrize(
    "alter",
    [without_content_range, without_the_size, one_byte_before],
    ids=["no range message", "no size message", "another range"],
)
def test_a_range_that_is_not_the_one_asked_for_is_not_taken(
    hub: Hub,
    sharded: Files,
    monkeypatch: pytest.MonkeyPatch,
    alter: Callable[[Request, Answer], Answer],
) -> None:
    hub.add(NAME, sharded)
    source = open_source(NAME, low_disk=True)
    tensor = source.tensors["model.norm.weight"]
    altered(hub, monkeypatch, alter)
    with pytest.raises(SourceError, match=rf"{NAME} has changed while .*safetensors was read"):
        tensor.read()
    with pytest.raises(SourceError, match=r"can be had only whole: do it without --low-disk"):
        minitron.convert(NAME, "out", low_disk=True)
    minitron.convert(NAME, "out")
    expected = tiny_model(vocab_size=VOCABULARY, dtype=torch.bfloat16).model.norm.weight
    assert torch.equal(open_source("out").tensors["model.norm.weight"].read(), expected)


def test_a_range_of_which_only_a_part_comes_is_asked_for_on(
    hub: Hub, sharded: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shortened(request: Request, given: Answer) -> Answer:
        first, _, size = map(int, re.findall(r"\d+", given.headers["Content-Range"]))
        body = given.body[: max(8, len(given.body) // 2)]
        message = f"bytes {first}-{first + len(body) - 1}/{size}"
        return replace(given, body=body, headers={"Content-Range": message})

    hub.add(NAME, sharded)
    altered(hub, monkeypatch, shortened)
    tensors = open_source(NAME, low_disk=True).tensors
    expected = tiny_model(vocab_size=VOCABULARY, dtype=torch.bfloat16).state_dict()
    name = "model.layers.2.mlp.up_proj.weight"
    assert torch.equal(tensors[name].read(), expected[name])


def test_a_range_is_asked_for_uncompressed(hub: Hub, sharded: Files) -> None:
    hub.add(NAME, sharded)
    minitron.inspect(NAME)
    asked = [seen for seen in hub.requests("GET", "/storage/") if "range" in seen.headers]
    assert {seen.headers["accept-encoding"] for seen in asked} == {"identity"}


def test_a_storage_that_never_answers_is_not_waited_for_without_end(
    hub: Hub, sharded: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, sharded)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    source = open_source(NAME)
    hub.fail(Fault("GET", "/storage/", delay=0.5, times=99))
    with pytest.raises(SourceError, match=rf"{NAME} cannot be fetched: the Hub cannot be reached"):
        _ = source.tensors


@pytest.mark.parametrize("length", [2**20, 2**40, 2**64 - 1])
@pytest.mark.parametrize("low_disk", [False, True])
def test_a_header_that_claims_to_be_longer_than_its_file_does_not_bring_the_file(
    hub: Hub, sharded: Files, length: int, low_disk: bool
) -> None:
    weights = length.to_bytes(8, "little") + bytes(200_000)
    files = {"config.json": sharded["config.json"], "model.safetensors": weights}
    hub.add(NAME, files)
    message = rf"^{NAME}/model.safetensors is truncated or no safetensors file"
    with pytest.raises(SourceError, match=message):
        minitron.convert(NAME, "out", low_disk=low_disk)
    assert sum(stop - start for _, start, stop in ranges_of(hub, files)) <= 64
    assert not came_whole(hub, files)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_weight_file_of_no_bytes_is_named(hub: Hub, sharded: Files, weights: str) -> None:
    hub.add(NAME, {"config.json": sharded["config.json"], weights: b""})
    with pytest.raises(SourceError, match=rf"{weights} is (truncated|not a file of torch.save)"):
        minitron.inspect(NAME)


# Pickles by what describes them


@pytest.mark.parametrize("shards", [1, 3])
def test_inspecting_a_pickle_fetches_only_what_describes_it(
    hub: Hub, pickled: Callable[[int], Files], tmp_path: Path, shards: int
) -> None:
    files = pickled(shards)
    hub.add(NAME, files)
    report = minitron.inspect(NAME)
    assert report.layout == ("pytorch_model.bin" if shards == 1 else "pytorch_model.bin (sharded)")
    assert (
        report.bytes == sum(t.nbytes for t in tiny_model(vocab_size=VOCABULARY).parameters()) // 2
    )
    assert report.dtype == "bfloat16"
    assert not came_whole(hub, files)
    # The beginning with its pickle, the directory at the end: none of the 40 records between.
    asked = ranges_of(hub, files)
    assert len(asked) <= 10 * shards
    weights = sum(len(files[name]) for name in shards_of(files).values())
    assert sum(stop - start for _, start, stop in asked) < weights / 6
    assert not list((tmp_path / "scratch").iterdir())
    assert on_disk(tmp_path, files) == []


def test_inspecting_a_pickle_from_before_torch_1_6_fetches_no_weights(
    hub: Hub, tmp_path: Path
) -> None:
    folder = pickled_folder(tmp_path / "old", vocab_size=VOCABULARY)
    state = tiny_model(vocab_size=VOCABULARY).state_dict()
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    files = contents(folder)
    hub.add(NAME, files)
    assert minitron.inspect(NAME).bytes == sum(tensor.nbytes for tensor in state.values())
    assert not came_whole(hub, files)
    came = sum(stop - start for _, start, stop in ranges_of(hub, files))
    assert came < len(files["pytorch_model.bin"]) / 10


def test_a_damaged_pickle_on_the_hub_has_its_name_there(
    hub: Hub, pickled: Callable[[int], Files]
) -> None:
    files = pickled(1)
    hub.add(NAME, {**files, "pytorch_model.bin": files["pytorch_model.bin"][:-5000]})
    with pytest.raises(SourceError, match=rf"^{NAME}/pytorch_model.bin is truncated"):
        minitron.inspect(NAME)


# Whether it came whole


@pytest.mark.parametrize("run", ["convert", "prune"])
def test_a_shard_that_is_another_than_the_hub_says_is_refused_until_it_is_deleted(
    hub: Hub, sharded: Files, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add(NAME, sharded)
    name = sorted(shards_of(sharded).values())[3]
    wrong = sharded[name][:-1] + bytes([sharded[name][-1] ^ 1])
    good, bad = sha256(sharded[name]).hexdigest(), sha256(wrong).hexdigest()
    hub.stored[good] = wrong
    options = ["--hidden-size", "24", "--corpus", "random", "--samples", "4", "--seq-len", "16"]
    command = [run, NAME, "out", *(options if run == "prune" else [])]
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(command)
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"/{name} is damaged: its sha256 is {bad}, but on the Hub it is {good}: " in line
        assert not list(Path().glob("out*"))
    hub.stored[good] = sharded[name]
    [blob] = re.findall(r"delete (\S+) and run again", line)
    Path(blob).unlink()
    main(command)
    assert came_whole(hub, sharded)[name] == 2


def test_a_byte_that_changes_on_its_way_is_noticed(hub: Hub, sharded: Files) -> None:
    hub.add(NAME, sharded)
    tensor = open_source(NAME).tensors["model.norm.weight"]
    hub.fail(Fault("GET", "/storage/", corrupt=True))
    with pytest.raises(SourceError, match=r"safetensors is damaged: its sha256 is "):
        tensor.read()


def test_a_shard_that_was_damaged_in_the_cache_is_refused(hub: Hub, sharded: Files) -> None:
    hub.add(NAME, sharded)
    minitron.convert(NAME, "one")
    tensor = open_source(NAME).tensors["model.layers.2.mlp.up_proj.weight"]
    [where] = tensor.ranges() or ()
    with where.path.open("r+b") as file:
        file.seek(where.start)
        file.write(b"\x01\x02")
    with pytest.raises(SourceError, match=rf"{where.path.name} is damaged: its sha256 is "):
        minitron.convert(NAME, "two")


def test_a_shard_is_looked_at_when_it_comes_and_not_again(
    hub: Hub, sharded: Files, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add(NAME, sharded)

    def looked() -> Counter[object]:
        records = [one for one in caplog.records if one.name == "minitron.files.verified_file"]
        caplog.clear()
        return Counter(one.args[0] for one in records if isinstance(one.args, tuple))

    with caplog.at_level(logging.INFO, "minitron.files.verified_file"):
        minitron.convert(NAME, "one")
        needed = set(shards_of(sharded).values()) - {"leftovers.safetensors"}
        assert looked() == dict.fromkeys(needed, 1)
        minitron.convert(NAME, "two")
        assert looked() == {}


def test_half_of_a_shard_left_by_another_run_is_in_nobodys_way(
    hub: Hub, sharded: Files, tmp_path: Path
) -> None:
    hub.add(NAME, sharded)
    blobs = tmp_path / "home" / "hub" / "models--Some--Model" / "blobs"
    blobs.mkdir(parents=True)
    for oid, name in shards_of(sharded).items():
        (blobs / f"{oid}.incomplete").write_bytes(b"\1" * (len(sharded[name]) // 2))
        (blobs / f"{oid}.12ab34cd.incomplete").write_bytes(sharded[name][:100])
    minitron.convert(NAME, "out")
    expected = tiny_model(vocab_size=VOCABULARY, dtype=torch.bfloat16).state_dict()
    found = open_source("out").tensors
    assert all(torch.equal(found[name].read(), tensor) for name, tensor in expected.items())


# Where there is nothing to read from


@pytest.mark.parametrize("low_disk", [False, True])
@pytest.mark.parametrize("how", ["offline", "unreachable"])
@pytest.mark.parametrize("name", [NAME, f"{NAME}@v2"])
def test_without_a_hub_and_without_a_cache_it_is_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, low_disk: bool, how: str, name: str
) -> None:
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    why = "HF_HUB_OFFLINE is set: " if how == "offline" else "the Hub cannot be reached: "
    message = f"^{name} is neither a folder nor in the cache, and {why}"
    with pytest.raises(SourceError, match=message):
        minitron.convert(name, "out", low_disk=low_disk)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("low_disk", [False, True])
def test_where_nothing_listens_what_is_cached_is_read(
    hub: Hub,
    with_tokenizer: Files,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    low_disk: bool,
) -> None:
    hub.add(NAME, with_tokenizer)
    minitron.convert(NAME, "one")
    snapshot_download(NAME)
    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    minitron.convert(NAME, "two", low_disk=low_disk)
    message = f"{NAME}: the Hub cannot be reached, reading what is in the cache"
    assert caplog.messages.count(message) == 1
    one, two = contents(Path("one")), contents(Path("two"))
    assert one.keys() == two.keys()
    assert "tokenizer.json" in two
    differ = {name for name in one if one[name] != two[name]}
    assert differ == {"README.md"}  # which names the folder


@pytest.mark.parametrize("low_disk", [False, True])
def test_offline_a_shard_that_is_not_cached_is_named(
    hub: Hub, sharded: Files, monkeypatch: pytest.MonkeyPatch, low_disk: bool
) -> None:
    hub.add(NAME, sharded)
    minitron.inspect(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"has no model-\d+-of-\d+.safetensors, which its index"):
        minitron.convert(NAME, "out", low_disk=low_disk)


@pytest.mark.parametrize("command", ["prune", "convert"])
def test_a_revision_that_is_missing_is_named(hub: Hub, sharded: Files, command: str) -> None:
    repository: Repository = hub.add(NAME, sharded)
    assert "v9" not in repository.branches
    run: Any = minitron.prune if command == "prune" else minitron.convert
    with pytest.raises(SourceError, match=rf"{NAME} has no revision v9: check it"):
        run(f"{NAME}@v9", "out", low_disk=True)


@pytest.mark.parametrize("status", [429, 500])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_nemo_is_inspected_although_the_hub_is_busy_for_a_moment(
    hub: Hub, tmp_path: Path, status: int, method: str
) -> None:
    settings = nemo_settings(tokenizer={"library": "huggingface", "type": "some/tokenizer"})
    tensors = megatron_tensors(settings, vocab_size=304)
    content = write_nemo_file(tmp_path / "made.nemo", tensors, settings).read_bytes()
    hub.add(NAME, {"nemo/model.nemo": content})
    path = "/api/models/|/resolve/"
    hub.fail(Fault(method, path, status=status, headers={"Retry-After": "1"}))
    assert minitron.inspect(f"{NAME}:nemo/model.nemo").format == "nemo"


def test_a_gguf_is_inspected_by_its_header_and_converted(hub: Hub, tmp_path: Path) -> None:
    content = model_file(tmp_path / "made.gguf", tiny_model("llama"), "F16").read_bytes()
    hub.add(NAME, {"gguf/model.gguf": content})
    assert minitron.inspect(f"{NAME}:gguf/model.gguf").format == "gguf"
    out = minitron.convert(f"{NAME}:gguf/model.gguf", str(tmp_path / "out"))
    there = open_source(str(tmp_path / "made.gguf")).weights
    for name, tensor in open_source(str(out)).weights.items():
        assert torch.equal(tensor.read(), there[name].read())


# What is beside the weights


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"tokenizer_class": 5}'),
        ("added_tokens.json", b"[1]"),
        ("tokenizer.json", b"{"),
    ],
    ids=lambda value: str(value),
)
def test_a_damaged_tokenizer_is_named(
    hub: Hub, with_tokenizer: Files, name: str, content: bytes
) -> None:
    hub.add(NAME, {**with_tokenizer, name: content})
    with pytest.raises(MinitronError, match=rf"^{NAME}: its tokenizer cannot be read: "):
        load_tokenizer(open_source(NAME))


@pytest.mark.parametrize(
    "changed",
    [
        {"hidden_size": "42"},
        {"max_position_embeddings": "long"},
        {"dtype": "evil"},
        {"id2label": 5},
        {"model_type": ["nemotron"]},
    ],
    ids=str,
)
def test_a_damaged_config_is_reported_before_the_tokenizer_is_read(
    hub: Hub, with_tokenizer: Files, changed: dict[str, Any]
) -> None:
    config = {**json.loads(with_tokenizer["config.json"]), **changed}
    hub.add(NAME, {**with_tokenizer, "config.json": json.dumps(config).encode()})
    with pytest.raises(ArchitectureError, match=next(iter(changed)).split("_")[0]):
        load_tokenizer(open_source(NAME))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"temperature": 1}]'], ids=str)
def test_a_damaged_generation_config_is_named(hub: Hub, sharded: Files, content: bytes) -> None:
    hub.add(NAME, {**sharded, "generation_config.json": content})
    with pytest.raises(SourceError, match=rf"^{NAME}/generation_config.json "):
        load_model(open_source(NAME))


def test_a_config_chooses_no_kernel_from_the_hub(sharded: Files) -> None:
    config = json.loads(sharded["config.json"])
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        assert hub_config({**config, key: "some/kernel"})._attn_implementation is None
