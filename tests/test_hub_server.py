"""The test Hub answers the real clients as huggingface.co does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_repositories import Account
from tests.hub_routes import Fault, Hub
from tests.hub_server import TOKEN, environment

# huggingface_hub's own, on every upload of a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
LARGE = bytes(range(256)) * 50  # 12,800 bytes
NEW = LARGE[::-1]
FILES = {"config.json": b'{"a": 1}\n', "model.safetensors": LARGE, "nemo/some.nemo": b"\0tar"}


@pytest.fixture(autouse=True)
def things(hub: Hub) -> None:
    """The repository that all read."""
    hub.add("Other/Thing", FILES)


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)


def test_what_is_uploaded_comes_back_equal(hub: Hub, tmp_path: Path) -> None:
    hub.part_size = 5000
    folder = tmp_path / "folder"
    files = {**FILES, "model.safetensors": NEW}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    api = HfApi()
    api.create_repo("me/new", private=True)
    commit = api.upload_folder(folder_path=folder, repo_id="me/new", commit_message="All of it")

    assert len(hub.requests("PUT", r"/lfs/\w+/\d")) == 3  # 12,800 bytes in parts of 5,000
    snapshot = Path(snapshot_download("me/new"))
    assert snapshot.name == commit.oid
    assert {n: (snapshot / n).read_bytes() for n in files} == files
    assert [c.title for c in api.list_repo_commits("me/new")] == ["All of it", "initial commit"]
    assert api.model_info("me/new").private is True


def test_a_file_that_is_stored_already_is_not_sent_again(hub: Hub) -> None:
    api = HfApi()
    api.create_repo("me/new")
    api.create_commit("me/new", [add("a.safetensors", NEW)], commit_message="One")
    api.create_commit("me/new", [add("b.safetensors", NEW)], commit_message="Two")

    assert len(hub.requests("PUT", "/lfs/")) == 1
    assert len(hub.requests("POST", "/commit/")) == 2


def test_files_are_deleted_and_a_stale_parent_is_refused(hub: Hub) -> None:
    api = HfApi()
    api.create_repo("me/new")
    first = api.create_commit("me/new", [add("a", b"a"), add("d/b", b"b")], commit_message="One")
    deletions = [CommitOperationDelete("a"), CommitOperationDelete("d/")]
    api.create_commit("me/new", deletions, commit_message="Two", parent_commit=first.oid)
    assert api.list_repo_files("me/new") == [".gitattributes"]
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(
            "me/new", [add("c", b"c")], commit_message="Three", parent_commit=first.oid
        )


def test_a_pull_request_branch_and_tag_are_revisions(hub: Hub) -> None:
    api = HfApi()
    api.create_repo("me/new")
    pull = api.create_commit(
        "Other/Thing", [add("note", b"1")], commit_message="Note", create_pr=True
    )
    assert pull.pr_revision == "refs/pr/1"
    api.create_branch("me/new", branch="try/this")
    commit = api.create_commit(
        "me/new", [add("note", b"2")], commit_message="Note", revision="try/this"
    )
    api.create_tag("me/new", tag="v1", revision="try/this")

    note = Path(hf_hub_download("Other/Thing", "note", revision="refs/pr/1"))
    assert note.read_bytes() == b"1"
    assert note.parent.name == pull.oid
    for revision in ("try/this", "v1", commit.oid, commit.oid[:8]):
        path = hf_hub_download("me/new", "note", revision=revision)
        assert Path(path).read_bytes() == b"2"
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("me/new", "note")
    refs = api.list_repo_refs("me/new")
    assert [ref.name for ref in refs.branches] == ["main", "try/this"]
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", commit.oid)]


def test_a_space_is_another_repository_than_a_model(hub: Hub) -> None:
    api = HfApi()
    api.create_repo("me/demo", repo_type="space", space_sdk="gradio")
    api.create_commit("me/demo", [add("app.py", b"1")], commit_message="App", repo_type="space")
    path = hf_hub_download("me/demo", "app.py", repo_type="space")
    assert Path(path).read_bytes() == b"1"
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("me/demo")


def test_a_tree_is_listed_in_pages(hub: Hub) -> None:
    hub.page_size = 2
    api = HfApi()
    paths = [entry.path for entry in api.list_repo_tree("Other/Thing", recursive=True)]
    assert paths == ["config.json", "model.safetensors", "nemo", "nemo/some.nemo"]
    assert len(hub.requests("GET", "/tree/")) == 2
    flat = {entry.path for entry in api.list_repo_tree("Other/Thing")}
    assert flat == {"config.json", "model.safetensors", "nemo"}
    [info] = api.get_paths_info("Other/Thing", ["model.safetensors", "missing"])
    assert info.lfs is not None
    assert info.lfs.size == len(LARGE)


def test_an_id_in_another_case_is_sent_to_its_own(hub: Hub) -> None:
    path = Path(hf_hub_download("other/thing", "config.json"))
    assert path.read_bytes() == FILES["config.json"]
    assert HfApi().model_info("other/thing").id == "Other/Thing"
    assert "config.json" in HfApi().list_repo_files("OTHER/THING")


def test_a_large_file_is_stored_elsewhere_without_a_token(hub: Hub) -> None:
    path = hf_hub_download("Other/Thing", "model.safetensors")
    assert Path(path).read_bytes() == LARGE
    assert os.path.basename(os.path.realpath(path)) == hub.requests("GET", "/storage/")[0].path[9:]
    assert {seen.account for seen in hub.requests("GET", "/storage/")} == {None}
    assert {seen.account for seen in hub.requests("HEAD", "/resolve/")} == {"me"}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("bytes=0-3", LARGE[:4]), ("bytes=12790-", LARGE[12790:]), ("bytes=-5", LARGE[-5:])],
)
def test_ranges_are_served(hub: Hub, asked: str, expected: bytes) -> None:
    url = f"{hub.url}/Other/Thing/resolve/main/model.safetensors"
    answer = httpx2.get(url, headers={"Range": asked}, follow_redirects=True)
    assert (answer.status_code, answer.content) == (206, expected)


@pytest.mark.parametrize(
    ("token", "status"), [(None, 401), ("hf_wrong", 401), ("hf_reads", 403), ("hf_other", 403)]
)
def test_only_the_owner_with_a_token_that_writes_may_write(
    hub: Hub, token: str | None, status: int
) -> None:
    HfApi().create_repo("me/new")
    with pytest.raises(HfHubHTTPError) as refused:
        HfApi(token=token or False).create_commit(
            "me/new", [add("a.safetensors", NEW)], commit_message="No"
        )
    assert refused.value.response.status_code == status
    assert hub.requests("PUT", "/lfs/") == []


def test_a_wrong_token_is_refused_even_where_none_is_needed(hub: Hub) -> None:
    assert HfApi(token=False).model_info("Other/Thing").id == "Other/Thing"
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token="hf_wrong").model_info("Other/Thing")


def test_private_gated_and_missing_are_distinguished(hub: Hub) -> None:
    hub.add("Other/Private", FILES, private=True)
    hub.add("Other/Gated", FILES, gated=True)
    for missing in ("Other/Private", "Other/Missing"):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(missing, "config.json")
    with pytest.raises(GatedRepoError):
        hf_hub_download("Other/Gated", "config.json")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("Other/Thing", "config.json", revision="v9")
    hub.accounts[TOKEN] = Account("me", granted=frozenset({"Other/Gated"}))
    hf_hub_download("Other/Gated", "config.json")
    hf_hub_download("Other/Private", "config.json", token="hf_other")


def test_a_collection_is_made_once(hub: Hub) -> None:
    api = HfApi()
    first = api.create_collection("Small models")
    assert api.create_collection("Small models", exists_ok=True).slug == first.slug
    for _ in range(2):
        collection = api.add_collection_item(first.slug, "Other/Thing", "model", exists_ok=True)
    assert [item.item_id for item in collection.items] == ["Other/Thing"]


def test_a_fault_comes_as_often_as_requested(hub: Hub) -> None:
    hub.fail(Fault("GET", "/storage/", status=429, times=2, headers={"Retry-After": "1"}))
    path = hf_hub_download("Other/Thing", "model.safetensors")
    assert Path(path).read_bytes() == LARGE
    assert len(hub.requests("GET", "/storage/")) == 3

    hub.fail(Fault("HEAD", "/resolve/", status=500))
    assert Path(hf_hub_download("Other/Thing", "nemo/some.nemo")).read_bytes() == b"\0tar"
    hub.fail(Fault("HEAD", "/resolve/", status=500, times=99))
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("Other/Thing", ".gitattributes")


def test_a_download_that_breaks_off_continues_where_it_was(hub: Hub) -> None:
    hub.fail(Fault("GET", "/storage/", drop_after=10_000))
    path = hf_hub_download("Other/Thing", "model.safetensors")
    assert Path(path).read_bytes() == LARGE
    assert len(hub.requests("GET", "/storage/")) == 2


def test_an_upload_that_breaks_off_or_is_damaged_is_sent_again_or_refused(hub: Hub) -> None:
    api = HfApi()
    api.create_repo("me/new")
    hub.fail(Fault("PUT", "/lfs/", drop_after=100))
    api.create_commit("me/new", [add("a.safetensors", NEW)], commit_message="One")
    assert len(hub.requests("PUT", "/lfs/")) == 2

    hub.fail(Fault("PUT", "/lfs/", corrupt=True))
    with pytest.raises(RuntimeError, match="Error while uploading"):
        api.create_commit("me/new", [add("b.safetensors", NEW[1:])], commit_message="Two")
    assert "b.safetensors" not in api.list_repo_files("me/new")


def test_a_slow_answer_is_slow(hub: Hub) -> None:
    hub.fail(Fault("GET", "/api/models/", delay=0.3))
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(f"{hub.url}/api/models/Other/Thing", timeout=0.1)


def test_a_damaged_download_has_another_checksum(hub: Hub) -> None:
    hub.fail(Fault("GET", "/storage/", corrupt=True))
    content = Path(hf_hub_download("Other/Thing", "model.safetensors")).read_bytes()
    assert len(content) == len(LARGE)
    assert content != LARGE


def test_another_process_finds_the_hub_in_its_environment(hub: Hub, tmp_path: Path) -> None:
    script = (
        "import json; from huggingface_hub import HfApi, hf_hub_download as d\n"
        "path = d('other/thing', 'config.json')\n"
        "print(json.dumps([path, HfApi().whoami()['name']]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(hub, tmp_path / "elsewhere", TOKEN),
        capture_output=True,
        text=True,
        check=True,
    )
    path, name = json.loads(run.stdout)
    assert path.startswith(str(tmp_path / "elsewhere" / "hub"))
    assert name == "me"
