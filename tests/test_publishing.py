"""Pushing to the Hub over the wire: what arrives, what is refused, and that no token is shown."""

import json
import logging
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron.errors import MinitronError, OutputError, SourceError, TargetError
from minitron.publish.destination import find_destination
from minitron.sources.opening import zoo
from minitron.verbs.push import push, push_result
from tests.hub_repositories import Collection, Repository
from tests.hub_routes import Answer, Fault, Hub, Request
from tests.hub_server import TOKEN, environment
from tests.tiny import edit_config, tiny_folder, zoo_tokenizer

# huggingface_hub's own, on every upload of a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
CARD = "---\nlicense: apache-2.0\nbase_model: some/base\n---\n\n# Half\n"
RECORD: dict[str, Any] = {
    "command": "prune",
    "recipe": {},
    "source": {"name": "some/base", "hidden_size": 84, "head_dim": 8, "parameters": 2000},
    "target": {"hidden_size": 42, "head_dim": 8, "parameters": 1000},
}


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three shards with everything that a push needs."""
    folder = tmp_path_factory.mktemp("made") / "half"
    tokenizer = zoo_tokenizer()
    tiny_folder(folder, max_shard_size="400KB", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "minitron.json").write_text(json.dumps(RECORD))
    return folder


@pytest.fixture
def folder(whole_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_folder, tmp_path / "half"))


def pushed(hub: Hub, repo: str = "me/half", revision: str = "main") -> dict[str, bytes]:
    """What the Hub has of a model, without the file that it makes itself."""
    repository = hub.repository("model", repo)
    assert repository is not None
    commit = repository.commit(revision)
    assert commit is not None
    return {name: b.content for name, b in commit.files.items() if name != ".gitattributes"}


def local(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def one(hub: Hub, repo: str = "me/half") -> Repository:
    repository = hub.repository("model", repo)
    assert repository is not None
    return repository


def test_pushed_bytes_are_the_local_ones_in_one_commit_that_says_what_was_done(
    hub: Hub, folder: Path
) -> None:
    publication = push(str(folder), "me/half", private=True)

    assert pushed(hub) == local(folder)
    assert len([name for name in pushed(hub) if name.endswith(".safetensors")]) > 2
    repository = one(hub)
    assert repository.private is True
    commit, initial = repository.history(repository.commits[publication.commit])
    assert commit.title == "Prune some/base: 1,000 parameters of 2,000"
    assert commit.message == "hidden_size 84 to 42\nparameters 2,000 to 1,000"
    assert initial.title == "initial commit"
    assert publication.url == f"{hub.url}/me/half/commit/{publication.commit}"


def test_the_embedded_teacher_is_pushed_in_parts_and_loads_where_only_transformers_is(
    hub: Hub, tmp_path: Path
) -> None:
    hub.part_size = 5_000_000
    push("tiny", "tiny-copy")

    assert pushed(hub, "me/tiny-copy") == local(zoo()["tiny"])
    assert len(hub.requests("PUT", r"/lfs/\w+/\d+")) > 1
    script = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        "assert not {'minitron', 'modeling_nemotron'} & sys.modules.keys()\n"
        "ids = T.from_pretrained('me/tiny-copy')('It was the', return_tensors='pt').input_ids\n"
        "model = M.from_pretrained('me/tiny-copy')\n"
        "print(type(model).__module__, model(ids).logits[0, -1].argmax().item())"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(hub, tmp_path / "elsewhere"),
        capture_output=True,
        text=True,
        check=True,
    )
    module, token = run.stdout.split()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(zoo()["tiny"])("It was the", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(zoo()["tiny"])(ids).logits
    assert module == "transformers.models.nemotron.modeling_nemotron"
    assert int(token) == logits[0, -1].argmax().item()


def test_a_local_folder_precedes_one_of_the_zoo_that_has_its_name(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "tiny-half" in zoo()
    folder.rename("tiny-half")
    push("tiny-half", "me/half")
    assert pushed(hub) == local(Path("tiny-half"))


def test_an_interrupted_push_continues_with_what_is_missing(hub: Hub, folder: Path) -> None:
    first, *others = [_sha256(path) for path in sorted(folder.glob("*.safetensors"))]
    hub.fail(Fault("PUT", "|".join(others), times=99, status=400))
    with pytest.raises(OutputError, match="cannot push to me/half"):
        push(str(folder), "me/half")
    assert pushed(hub) == {}
    assert first in hub.stored

    hub.faults.clear()
    hub.seen.clear()
    push(str(folder), "me/half")
    sent = {seen.path.removeprefix("/lfs/") for seen in hub.requests("PUT", "/lfs/")}
    assert sent == set(others)
    assert pushed(hub) == local(folder)

    hub.seen.clear()
    again = push(str(folder), "me/half")
    assert hub.requests("PUT", "/lfs/") == []
    assert hub.requests("POST", "/commit/") == []
    assert again.commit == one(hub).branches["main"]


def test_ctrl_c_during_a_push_says_what_to_do(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", interrupt)
    with pytest.raises(KeyboardInterrupt) as alone:
        push(str(folder), "me/half")
    assert alone.value.__notes__ == ["the same command sends only what is missing"]
    with pytest.raises(KeyboardInterrupt) as after_the_work:
        push_result(folder, "me/half", private=False)
    says = f"{folder} is written but not pushed: minitron push {folder} me/half"
    assert after_the_work.value.__notes__ == [says]


def _sha256(path: Path) -> str:
    from hashlib import sha256

    return sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "/api/repos/create", status=429, headers={"Retry-After": "1"}),
        Fault("POST", "/commit/", status=503, times=2),
        Fault("PUT", "/lfs/", status=500),
        Fault("PUT", "/lfs/", drop_after=1000),
        Fault("POST", "/preupload/", drop_after=10),
        Fault("GET", "/whoami", status=429),
        Fault("GET", "/whoami", status=502, times=2),
        Fault("POST", "/api/repos/create", status=500),
        Fault("POST", "/commit/", status=500),
        Fault("POST", "/commit/", status=504, times=3),
    ],
    ids=str,
)
def test_what_passes_is_waited_for(hub: Hub, folder: Path, fault: Fault) -> None:
    hub.fail(fault)
    push(str(folder), "me/half")
    assert fault.times == 0
    assert pushed(hub) == local(folder)
    assert len(one(hub).commits) == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("POST", "/commit/", status=500, times=9), "the Hub fails (HTTP 500); try again"),
        (Fault("POST", "/commit/", drop_after=10), "cannot be reached or broke off; try again"),
        (Fault("POST", "/commit/", status=429, times=9), "the Hub is too busy (HTTP 429); wait"),
        (Fault("POST", "/commit/", status=412), "me/half has changed meanwhile; try again"),
        (Fault("PUT", "/lfs/", corrupt=True), "did not match what we received"),
        (Fault("POST", "/lfs/verify", status=404), "the Hub answers HTTP 404"),
    ],
    ids=["fails", "drops", "busy", "overtaken", "checksum", "verify"],
)
def test_what_does_not_pass_is_one_line_and_commits_nothing(
    hub: Hub, folder: Path, fault: Fault, message: str
) -> None:
    hub.fail(fault)
    with pytest.raises(OutputError) as refused:
        push(str(folder), "me/half")
    assert str(refused.value).startswith("cannot push to me/half: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert pushed(hub) == {}


def fails_after_committing(hub: Hub, monkeypatch: pytest.MonkeyPatch, meanwhile: str) -> None:
    """The next commit is made and answered by HTTP 500; another may follow it."""
    answer, failures = hub.answer, [500]

    def failing(request: Request) -> Answer:
        made = answer(request)
        if "/commit/" not in request.path or not failures:
            return made
        if meanwhile:
            one(hub).add_commit("main", meanwhile, "", {})
        return replace(made, status=failures.pop())

    monkeypatch.setattr(hub, "answer", failing)


def test_a_commit_that_was_made_although_the_hub_failed_is_not_made_again(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(str(folder), "me/half")
    (folder / "NOTICE").write_text("new")
    commits = len(one(hub).commits)
    fails_after_committing(hub, monkeypatch, "")
    publication = push(str(folder), "me/half")
    assert len(one(hub).commits) == commits + 1
    assert publication.commit == one(hub).branches["main"]
    assert publication.url.endswith(f"/me/half/commit/{publication.commit}")


def test_a_commit_that_came_between_is_not_written_over(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(str(folder), "me/half")
    (folder / "NOTICE").write_text("new")
    fails_after_committing(hub, monkeypatch, "Something else")
    with pytest.raises(OutputError, match="me/half has changed meanwhile; try again"):
        push(str(folder), "me/half")


def test_a_pull_request_is_opened_once(hub: Hub, folder: Path) -> None:
    push(str(folder), "me/half")
    (folder / "NOTICE").write_text("new")
    hub.seen.clear()
    hub.fail(Fault("POST", "/commit/", status=500))
    with pytest.raises(OutputError, match=r"the Hub fails \(HTTP 500\)"):
        push(str(folder), "me/half", create_pr=True)
    assert len(hub.requests("POST", "/commit/")) == 1


def test_files_that_the_hub_ignores_are_named(
    hub: Hub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.ignored = {"tokenizer_config.json", "minitron.json"}
    with caplog.at_level(logging.WARNING, logger="minitron"):
        push(str(folder), "me/half")
    assert caplog.messages == [
        "me/half ignores 2 of the files, which were not pushed: minitron.json, "
        "tokenizer_config.json; remove them from its .gitignore and push again"
    ]


def test_folders_of_this_machine_stay_here(hub: Hub, folder: Path, tmp_path: Path) -> None:
    made = {"command": "convert", "source": {"name": "C:\\Users\\me\\tiny.nemo"}}
    before: dict[str, Any] = {**RECORD["source"], "name": str(tmp_path / "secret" / "tiny")}
    record = {
        **RECORD,
        "source": {**before, "made": made},
        "recipe": {
            "corpus": "../books/mine.jsonl.gz",
            "eval_corpus": str(tmp_path / "texts" / "mine"),
            "importance": "~/scores/mine.safetensors",
            "held_out": "texts/held-out.txt",
            "source": "Some/Model:nemo/model.nemo",
            "names": ["Some/Model", "self", "./x"],
            "license": "https://example.com/LICENSE.txt",
            "steps": 5,
        },
    }
    (folder / "minitron.json").write_text(json.dumps(record))
    push(str(folder), "me/half")
    there = json.loads(pushed(hub)["minitron.json"])
    assert there == {
        **record,
        "source": {**before, "name": "tiny", "made": {**made, "source": {"name": "tiny.nemo"}}},
        "recipe": {
            "corpus": "mine.jsonl.gz",
            "eval_corpus": "mine",
            "importance": "mine.safetensors",
            "held_out": "held-out.txt",
            "source": "Some/Model:nemo/model.nemo",
            "names": ["Some/Model", "self", "x"],
            "license": "https://example.com/LICENSE.txt",
            "steps": 5,
        },
    }
    assert json.loads((folder / "minitron.json").read_text()) == record
    assert str(tmp_path) not in "".join(map(str, pushed(hub).values()))


def test_weights_of_an_earlier_push_are_removed_in_the_same_commit(
    hub: Hub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "minitron.verbs.push")
    earlier = dict.fromkeys(("model.safetensors", "pytorch_model.bin", "nemo/a.nemo"), b"\x00old")
    repository = hub.add("me/half", {**earlier, "notes.md": b"kept"})
    push(str(folder), "me/half")
    assert pushed(hub) == {**local(folder), "nemo/a.nemo": b"\0old", "notes.md": b"kept"}
    assert len(repository.commits) == 3
    removed = "removed there, as the folder has no such: model.safetensors, pytorch_model.bin"
    assert removed in caplog.text
    assert removed in repository.commits[repository.branches["main"]].message


def test_a_branch_and_a_tag_are_made_and_main_stays(hub: Hub, folder: Path) -> None:
    publication = push(str(folder), "me/half", branch="try/this", tag="v1")
    assert pushed(hub) == {}
    assert pushed(hub, revision="try/this") == local(folder)
    assert one(hub).tags == {"v1": publication.commit}
    with pytest.raises(OutputError, match="has a tag v1 already: choose another"):
        push(str(folder), "me/half", tag="v1")


def test_a_pull_request_to_another_is_opened_and_printed(hub: Hub, folder: Path) -> None:
    repository = hub.add("Other/Thing", {"config.json": b"{}"})
    publication = push(str(folder), "Other/Thing", create_pr=True, commit_message="Shards")
    assert publication.url == f"{hub.url}/Other/Thing/discussions/1"
    assert pushed(hub, "Other/Thing") == {"config.json": b"{}"}
    assert pushed(hub, "Other/Thing", "refs/pr/1") == local(folder)
    assert repository.commits[publication.commit].title == "Shards"


@pytest.mark.parametrize("name", ["", "a b", "a..b", "-a", "a/", "a.lock", "a~1"])
@pytest.mark.parametrize("option", ["branch", "tag"])
def test_what_git_would_not_take_as_a_name_is_refused_before_anything_is_sent(
    hub: Hub, folder: Path, option: str, name: str
) -> None:
    with pytest.raises(TargetError, match=f"--{option} '{name}' is no name that git takes"):
        push(str(folder), "me/half", **{option: name})
    assert hub.seen == []


def test_a_tag_that_fails_is_set_by_the_same_command_again(hub: Hub, folder: Path) -> None:
    hub.fail(Fault("POST", "/tag/", status=500))
    with pytest.raises(OutputError, match=r"me/half is pushed but not tagged v1: the Hub fails"):
        push(str(folder), "me/half", tag="v1")
    assert pushed(hub) == local(folder)
    publication = push(str(folder), "me/half", tag="v1")
    assert one(hub).tags == {"v1": publication.commit}
    assert len(one(hub).commits) == 2


def test_a_pull_request_that_would_change_nothing_is_not_opened_and_logged(
    hub: Hub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "minitron.verbs.push")
    push(str(folder), "me/half")
    push(str(folder), "me/half", create_pr=True)
    assert one(hub).pulls == {}
    assert "me/half has all of this already: no pull request was opened" in caplog.text


def test_an_id_in_another_case_is_that_of_the_repository(hub: Hub, folder: Path) -> None:
    hub.add("me/half", {})
    publication = push(str(folder), "Me/HALF", branch="try", tag="v1", collection="Small")
    assert publication.url == f"{hub.url}/me/half/commit/{publication.commit}"
    assert hub.collections[0].items == [("model", "me/half")]
    assert not hub.requests("POST", "Me/HALF")


def test_a_hub_that_does_not_list_accounts_rights_or_refs_is_pushed_to_all_the_same(
    hub: Hub, folder: Path
) -> None:
    hub.fail(Fault("GET", "/whoami|/auth-check|/refs", times=99, status=404))
    push(str(folder), "me/half", tag="v1")
    push(str(folder), "me/half", branch="try")
    assert pushed(hub, revision="try") == local(folder)
    with pytest.raises(OutputError, match="half has no owner: name it OWNER/half"):
        push(str(folder), "half")


def test_a_collection_is_found_by_title_or_slug(hub: Hub, folder: Path) -> None:
    push(str(folder), "me/half", collection="Small models")
    push(str(folder), "me/half-again", collection="Small models")
    [collection] = hub.collections
    push(str(folder), "me/third", collection=collection.slug)
    assert [item for _, item in collection.items] == ["me/half", "me/half-again", "me/third"]

    with pytest.raises(OutputError, match="the Hub says: Collection not found"):
        push(str(folder), "me/fourth", collection="me/nothing-0123")
    assert hub.repository("model", "me/fourth") is None


def test_a_collection_of_another_is_refused_before_anything_is_made(hub: Hub, folder: Path) -> None:
    collection = Collection("Small", "Other")
    hub.collections.append(collection)
    with pytest.raises(OutputError, match="is a collection of Other, which me cannot add to"):
        push(str(folder), "me/half", collection=collection.slug)
    assert hub.repositories == []


def pickled(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")


def pickled_elsewhere(folder: Path) -> None:
    (folder / "checkpoint-1").mkdir()
    torch.save({}, folder / "checkpoint-1" / "state", _use_new_zipfile_serialization=False)


def pickled_in_a_zip(folder: Path) -> None:
    torch.save({}, folder / "state.data")


def pickled_newly(folder: Path) -> None:
    (folder / "state").write_bytes(pickle.dumps({}, protocol=5))


def longer(folder: Path) -> None:
    with (folder / "model-00002-of-00003.safetensors").open("ab") as file:
        file.write(b"\0" * 8)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle": (pickled, "has pytorch_model.bin, a pickle, which can run code"),
    "pickle below": (pickled_elsewhere, "has checkpoint-1/state, a pickle"),
    "pickle in a zip": (pickled_in_a_zip, "has state.data, a pickle"),
    "pickle of the newest protocol": (pickled_newly, "has state, a pickle"),
    "pickle in capitals": (lambda f: (f / "OLD.PT").touch(), "has OLD.PT, a pickle"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "a shard less": (
        lambda f: sorted(f.glob("*.safetensors"))[0].unlink(),
        "which its index names: fetch it",
    ),
    "half a shard": (
        lambda f: (f / "model-00001-of-00003.safetensors").write_bytes(b"\0" * 9),
        "model-00001-of-00003.safetensors",
    ),
    "more than a shard": (longer, "model-00002-of-00003.safetensors is damaged"),
    "damaged generation config": (
        lambda f: (f / "generation_config.json").write_text("["),
        "generation_config.json is not JSON",
    ),
    "damaged record": (
        lambda f: (f / "minitron.json").write_text("{"),
        "minitron.json is not JSON",
    ),
    "a record of nothing": (
        lambda f: (f / "minitron.json").write_text('{"source": 3}'),
        "minitron.json has no command: it records too little",
    ),
    "other sizes": (lambda f: edit_config(f, hidden_size=40), "but config.json asks for"),
    "no tokenizer": (
        lambda f: [path.unlink() for path in f.glob("tokenizer*")],
        "has no tokenizer files",
    ),
    "no card": (lambda f: (f / "README.md").unlink(), "has no README.md: write a model card"),
    "no metadata": (lambda f: (f / "README.md").write_text("# Half\n"), "has no metadata"),
    "damaged metadata": (
        lambda f: (f / "README.md").write_text("---\nlicense: [\n---\n"),
        "has damaged metadata",
    ),
    "a base that is a path": (
        lambda f: (f / "README.md").write_text("---\nbase_model: /home/me/it\n---\n"),
        "names base_model '/home/me/it': write its id, owner/name",
    ),
    "a base that is a number": (
        lambda f: (f / "README.md").write_text("---\nbase_model: 5\n---\n"),
        "names base_model 5: write its id, owner/name",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_folder_that_is_not_fit_is_refused_before_anything_is_sent(
    hub: Hub, folder: Path, broken: str
) -> None:
    spoil, message = BROKEN[broken]
    spoil(folder)
    with pytest.raises(MinitronError) as refused:
        push(str(folder), "me/half")
    assert message in str(refused.value)
    assert hub.seen == []


def test_weights_that_are_not_finite_are_not_sent(hub: Hub, folder: Path) -> None:
    path = folder / "model-00003-of-00003.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[-1] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(SourceError, match="holds NaN or infinity"):
        push(str(folder), "me/half")
    assert hub.repositories == []


def test_metadata_that_the_hub_refuses_makes_no_repository(hub: Hub, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: [apache-2.0]\n---\n")
    with pytest.raises(SourceError, match='refuses its metadata .*"license" must be a string'):
        push(str(folder), "me/half")
    assert hub.repositories == []


def test_a_folder_that_is_not_there_is_named(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere is no folder"):
        push(str(tmp_path / "nowhere"), "me/half")


def test_hidden_files_stay_here(hub: Hub, folder: Path) -> None:
    before = local(folder)
    (folder / ".env").write_text("SECRET=1")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "note").write_text("mine")
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "one.yaml").write_text("[]")
    push(str(folder), "me/half")
    assert pushed(hub) == {**before, ".eval_results/one.yaml": b"[]"}


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "cannot push to me/half: there is no token; log in with `hf auth login`"),
        ("hf_wrong", "cannot push to me/half: the Hub refuses the token; log in"),
        ("hf_reads", "the token of me may only read: make one that may write"),
        ("hf_other", "me/half does not exist, and Other cannot create it: name one of Other/..."),
    ],
)
def test_a_token_that_is_refused_is_named_without_showing_it(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, message: str
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(OutputError) as refused:
        push(str(folder), "me/half")
    assert message in str(refused.value)
    assert str(token) not in str(refused.value)
    assert hub.repositories == []


def test_an_organization_is_pushed_to_by_who_may(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    hub.add("firm/half", {}, private=True)
    publication = push(str(folder), "team/half", private=True, collection="Small")
    assert publication.repo == "team/half"
    assert pushed(hub, "team/half") == local(folder)
    assert hub.collections[0].owner == "team"
    for repo in ("firm/other", "firm/half"):
        with pytest.raises(OutputError, match=f"the token may not do that to {repo}; use one"):
            push(str(folder), repo)
    with pytest.raises(OutputError, match=r"name one of us/\.\.\., team/\.\.\., firm/\.\.\."):
        push(str(folder), "me/half")


def test_what_belongs_to_another_is_refused(hub: Hub, folder: Path) -> None:
    hub.add("Other/Thing", {})
    with pytest.raises(OutputError, match="the token may not do that to Other/Thing; use one that"):
        push(str(folder), "Other/Thing")
    assert pushed(hub, "Other/Thing") == {}


@pytest.mark.parametrize("name", ["a/b/c", "me/half--time", "me/", "-me/half", "me/ha lf", ""])
def test_an_invalid_name_is_refused_before_anything_is_sent(hub: Hub, name: str) -> None:
    with pytest.raises(OutputError, match="is no name for a repository: owner/name"):
        push("tiny", name)
    assert hub.seen == []


@pytest.mark.parametrize(("kind", "called"), [("space", "a Space"), ("dataset", "a data set")])
def test_a_name_that_another_kind_of_thing_has_is_refused(
    hub: Hub, folder: Path, kind: str, called: str
) -> None:
    hub.add("me/half", {}, type=kind)
    with pytest.raises(OutputError, match=f"me/half is {called} already: choose another name"):
        push(str(folder), "me/half")
    assert hub.repository("model", "me/half") is None


def test_a_public_repository_does_not_become_private_by_a_push(hub: Hub, folder: Path) -> None:
    hub.add("me/half", {})
    with pytest.raises(OutputError, match="me/half is public already"):
        push(str(folder), "me/half", private=True)
    hub.add("me/secret", {}, private=True)
    push(str(folder), "me/secret", private=True)


def test_a_pull_request_needs_a_repository(hub: Hub, folder: Path) -> None:
    with pytest.raises(OutputError, match="there is no me/half to open a pull request on"):
        push(str(folder), "me/half", create_pr=True)


@pytest.mark.parametrize("other", [{"branch": "b"}, {"tag": "t"}, {"private": True}])
def test_options_that_contradict_each_other_are_refused(
    hub: Hub, folder: Path, other: dict[str, Any]
) -> None:
    with pytest.raises(TargetError, match="--create-pr cannot be combined"):
        push(str(folder), "me/half", create_pr=True, **other)


def test_being_offline_is_one_line(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OutputError, match="HF_HUB_OFFLINE is set; unset it"):
        push(str(folder), "me/half")


def test_a_hub_that_is_not_there_is_one_line(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OutputError, match="the Hub cannot be reached; check the connection"):
        push(str(folder), "me/half")


def test_a_destination_is_found_without_changing_anything(hub: Hub) -> None:
    assert find_destination("half", private=True).repo == "me/half"
    assert not find_destination("me/half").exists
    assert hub.repositories == []


@pytest.mark.slow
def test_the_command_prints_where_it_went_and_a_mistake_is_one_line(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "elsewhere"

    def run(token: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "minitron", "push", str(folder), "me/half"]
        variables = environment(hub, home, token)
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)

    good = run(TOKEN)
    assert good.returncode == 0, good.stderr
    assert good.stdout == f"{hub.url}/me/half/commit/{one(hub).branches['main']}\n"
    assert pushed(hub) == local(folder)
    bad = run("hf_reads")
    assert bad.returncode == 2
    assert bad.stderr.startswith("minitron: the token of me may only read: ")
    assert bad.stderr.count("\n") == 1

    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    visible = [path.read_bytes() for path in written] + list(pushed(hub).values())
    visible += [text.encode() for ran in (good, bad) for text in (ran.stdout, ran.stderr)]
    assert not any(token in text for text in visible for token in (b"hf_aVery", b"hf_reads"))


def test_our_model_pushes_itself_as_every_transformers_model_does(hub: Hub) -> None:
    from modeling_nemotron import NemotronConfig, NemotronForCausalLM
    from tests.tiny import SIZES

    torch.manual_seed(0)
    model = NemotronForCausalLM(NemotronConfig(**SIZES))
    model.push_to_hub("me/own", private=True)
    files = pushed(hub, "me/own")
    assert one(hub, "me/own").private is True
    assert json.loads(files["config.json"])["architectures"] == ["NemotronForCausalLM"]
    again = NemotronForCausalLM.from_pretrained("me/own")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
