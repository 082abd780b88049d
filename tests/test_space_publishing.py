"""Pushing the Space over the wire: what arrives, that it installs and starts, what is refused."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

import minitron
from minitron import cli
from minitron.errors import MinitronError, OutputError, TargetError
from minitron.publish.space_folder import own_wheel, package_files
from minitron.sources.opening import zoo
from minitron.verbs.push import push
from tests.hub_repositories import Repository
from tests.hub_routes import Fault, Hub
from tests.hub_server import TOKEN, environment

# huggingface_hub's own, on every upload of a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
REPO = "me/demo"
INSTALLS = "MINITRON_TEST_SPACE_INSTALL"
FOLDERS = {
    "minitron/": "minitron/",
    "conversion/": "minitron/conversion/",
    "space/": "minitron/space/",
    "modeling_nemotron/": "modeling_nemotron/",
}


@pytest.fixture
def half(hub: Hub) -> str:
    """A model on the Hub."""
    files = {path.name: path.read_bytes() for path in zoo()["tiny"].iterdir() if path.is_file()}
    hub.add("me/tiny-half", files)
    return "me/tiny-half"


def the_space(hub: Hub) -> Repository:
    repository = hub.repository("space", REPO)
    assert repository is not None
    return repository


def pushed(hub: Hub) -> dict[str, bytes]:
    """What the Hub has of the Space, without the file that it makes itself."""
    commit = the_space(hub).commit("main")
    assert commit is not None
    return {name: b.content for name, b in commit.files.items() if name != ".gitattributes"}


def header(readme: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(readme.decode().split("---\n")[1])
    return loaded


def checkout(files: Mapping[str, bytes], folder: Path) -> Path:
    """The repository as a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def packaged() -> set[str]:
    """What the packages hold, as git or the installation lists it."""
    root = Path(minitron.__file__).parent.parent
    if not (root / ".git").exists():
        installed = next(d for d in distributions(name="minitron") if d.read_text("WHEEL"))
        files = [file.as_posix() for file in installed.files or ()]
        return {f for f in files if f.startswith(("minitron/", "modeling_")) and "__pyc" not in f}
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS]
    listed = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True).stdout
    return {
        within + name.removeprefix(folder)
        for name in listed.splitlines()
        for folder, within in FOLDERS.items()
        if name.startswith(folder) and (root / name).is_file()
    }


def test_the_space_arrives_whole_in_one_commit(hub: Hub) -> None:
    publication = push(space=REPO)

    files = pushed(hub)
    wheel = own_wheel().name
    for name, path in package_files("minitron.space").items():
        if name != "requirements.txt":
            assert files[name] == path.read_bytes(), name
    assert files["evidence.json"].startswith(b"{")
    assert {"tabs/evidence.py", "ui/templates/evidence.html.jinja"} <= files.keys()
    assert set(files) == {*package_files("minitron.space"), wheel}
    card = header(files["README.md"])
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py")
    repository = the_space(hub)
    assert repository.private is False
    commit, initial = repository.history(repository.commits[publication.commit])
    assert commit.title.startswith("Show the embedded family, with minitron ")
    assert initial.title == "initial commit"
    assert publication.url == f"{hub.url}/spaces/{REPO}"
    [made] = hub.requests("POST", "/api/repos/create")
    assert b'"sdk":"gradio"' in made.body.replace(b" ", b"")


def test_the_models_are_those_that_the_space_reads(
    hub: Hub, half: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minitron.space.jobs.catalog import SETTING, Catalog

    monkeypatch.delenv(SETTING, raising=False)
    push("tiny", f"{half}@main", space=REPO, commit_message="Two of them")

    files = pushed(hub)
    catalog = Catalog.read(checkout(files, tmp_path / "space"))
    sources = {model.name: model.source for model in catalog.models}
    assert sources == {"tiny": "tiny", "tiny-half": f"{half}@main"}
    card = header(files["README.md"])
    assert card["models"] == [half]
    assert card["hf_oauth_scopes"] == ["write-repos", "manage-repos"]
    assert card["python_version"] == "3.12"
    assert "✂️" in files["README.md"].decode()
    repository = the_space(hub)
    commit = repository.commits[repository.branches["main"]]
    assert commit.title == "Two of them"
    assert commit.message == f"tiny: tiny\ntiny-half: {half}@main"


def test_the_wheel_holds_what_the_packages_hold_and_pip_installs_it(
    hub: Hub, tmp_path: Path
) -> None:
    wheel = own_wheel()
    path = wheel.write(tmp_path)
    target = tmp_path / "installed"
    flags = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--quiet"]
    pip = [sys.executable, "-m", "pip", "install", *flags, "--target", str(target), str(path)]
    subprocess.run(pip, check=True, capture_output=True)

    found = {f.relative_to(target).as_posix() for f in target.rglob("*") if f.is_file()}
    code = {name for name in found if ".dist-info" not in name and not name.startswith("bin/")}
    assert code == packaged()
    about = f"minitron-{wheel.version}.dist-info"
    assert {f"{about}/METADATA", f"{about}/licenses/LICENSE", "bin/minitron"} <= found
    script = (
        "import minitron.conversion, minitron.space, modeling_nemotron, importlib.metadata as m\n"
        "from minitron.sources.opening import zoo\n"
        "assert 'tiny' in zoo(); print(minitron.__file__, m.version('minitron'))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(target)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == [str(target / "minitron" / "__init__.py"), wheel.version]


def test_the_wheel_is_the_same_bytes_each_time_and_contains_nothing_of_this_machine(
    tmp_path: Path,
) -> None:
    (tmp_path / "again").mkdir()
    first, again = own_wheel().write(tmp_path), own_wheel().write(tmp_path / "again")
    assert first.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(first) as archive:
        about = [archive.read(n).decode() for n in archive.namelist() if ".dist-info/" in n]
    assert not any(str(Path(minitron.__file__).parent.parent) in text for text in about)


def test_requirements_name_the_wheel_by_its_address_and_checksum(hub: Hub) -> None:
    from hashlib import sha256

    push(space=REPO)
    files, wheel = pushed(hub), own_wheel()
    address = f"{hub.url}/spaces/{REPO}/resolve/main/{wheel.name}"
    digest = sha256(files[wheel.name]).hexdigest()
    assert files["requirements.txt"].decode() == f"minitron[space] @ {address}#sha256={digest}\n"


def test_an_id_in_another_case_is_that_of_the_space(hub: Hub) -> None:
    push(space=REPO)
    publication = push(space="ME/Demo", commit_message="Again")
    assert publication.url == f"{hub.url}/spaces/{REPO}"
    assert f"/spaces/{REPO}/resolve/" in pushed(hub)["requirements.txt"].decode()


def test_a_private_space_holds_minitron_unpacked_and_names_what_it_needs(hub: Hub) -> None:
    push(space=REPO, private=True)
    files, wheel = pushed(hub), own_wheel()
    assert the_space(hub).private is True
    assert wheel.files.items() <= files.items()
    assert not [name for name in files if name.endswith(".whl")]
    required = files["requirements.txt"].decode().splitlines()
    assert any(line.startswith("gradio[") for line in required)
    assert any(re.match("torch[<>]", line) for line in required)
    assert not any("extra ==" in line or "minitron" in line for line in required)

    hub.seen.clear()
    push(space=REPO)  # that it is private is seen
    assert hub.requests("POST", "/commit/") == []


def test_what_an_earlier_push_left_is_removed_and_what_others_added_stays(
    hub: Hub, half: str
) -> None:
    push(half, space=REPO)
    repository = the_space(hub)
    left = {
        "minitron-0.0.1-py3-none-any.whl": b"\0",
        "old_tab.py": b"",
        "ui/templates/old.html.jinja": b"",
        "notes.md": b"mine",
    }
    hub.replace_files(repository, {**pushed(hub), **left})
    push(space=REPO)
    assert {"models.yaml", *left} & pushed(hub).keys() == {"notes.md"}


def test_an_interrupted_push_continues_and_a_second_one_changes_nothing(hub: Hub) -> None:
    hub.fail(Fault("POST", "/commit/", status=500, times=9))
    with pytest.raises(OutputError, match=f"cannot push to {REPO}: the Hub fails"):
        push(space=REPO)
    hub.faults.clear()
    hub.seen.clear()
    first = push(space=REPO)
    assert hub.requests("PUT", "/lfs/") == []
    hub.seen.clear()
    assert push(space=REPO).commit == first.commit
    assert hub.requests("POST", "/commit/") == []


def test_a_model_that_not_everybody_may_read_is_logged(
    hub: Hub, half: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "minitron.publish.space_publishing")
    repository = hub.repository("model", half)
    assert repository is not None
    repository.private = True
    push(half, space=REPO)
    assert "me/tiny-half is private: give the Space a secret HF_TOKEN" in caplog.text


def test_a_name_that_another_kind_of_thing_has_is_refused(hub: Hub, half: str) -> None:
    with pytest.raises(OutputError, match="me/tiny-half is a model already: choose another name"):
        push(space=half)
    assert hub.repository("space", half) is None


def test_another_space_is_not_written_over(hub: Hub) -> None:
    hub.add(REPO, {"README.md": b"", "game.js": b"1"}, type="space")
    with pytest.raises(OutputError, match="me/demo is another Space already, with game.js in it"):
        push(space=REPO)
    assert pushed(hub) == {"README.md": b"", "game.js": b"1"}


def test_a_public_space_does_not_become_private_by_a_push(hub: Hub) -> None:
    push(space=REPO)
    with pytest.raises(OutputError, match="me/demo is public already"):
        push(space=REPO, private=True)


BAD: dict[str, tuple[list[str], str]] = {
    "no owner": (["--space", "demo"], "--space demo has no owner: name it OWNER/demo"),
    "no name": (["--space", "me/de mo"], "me/de mo is no name for a repository"),
    "not mine": (["--space", "you/demo"], "you/demo does not exist, and me cannot create it"),
    "a folder": (["--space", REPO, "here"], "here is on this machine, where a Space cannot"),
    "a folder called as one of the zoo": (["--space", REPO, "tiny-half"], "tiny-half is on this"),
    "not there": (["--space", REPO, "me/nothing"], "me/nothing"),
    "no name of the zoo": (["--space", REPO, "tinny"], "tinny does not exist"),
    "twice": (["--space", REPO, "tiny", "tiny"], "tiny and tiny would both be called tiny"),
    "a tag": (["--space", REPO, "--tag", "v1"], "--tag has no effect with --space"),
    "a pull request": (["--space", REPO, "--create-pr"], "--create-pr has no effect with --space"),
    "a folder alone": (["here"], "push takes a folder and its repository"),
    "too many": (["here", "me/half", "tiny"], "push takes a folder and its repository"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_mistake_is_one_line_and_makes_nothing(
    hub: Hub,
    bad: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("here", "tiny-half"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[bad]
    with pytest.raises(SystemExit) as left:
        cli.main(["push", *arguments])
    assert left.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("minitron: ")
    assert message in printed
    assert printed.count("\n") == 1
    assert hub.repositories == []


@pytest.mark.parametrize(
    ("token", "message"),
    [(None, "there is no token; log in"), ("hf_reads", "the token of me may only read")],
)
def test_a_token_that_is_refused_is_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None, message: str
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(MinitronError) as refused:
        push(space=REPO)
    assert message in str(refused.value)
    assert str(token) not in str(refused.value)
    assert hub.repositories == []


def test_a_collection_is_refused(hub: Hub) -> None:
    with pytest.raises(TargetError, match="--collection has no effect with --space"):
        push(space=REPO, collection="Small")


def test_the_command_prints_where_the_space_is_and_its_token_is_nowhere(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cli.main(["push", "--space", REPO, "tiny"])
    printed = capfd.readouterr()
    assert printed.out == f"{hub.url}/spaces/{REPO}\n"
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    texts = [*pushed(hub).values(), *kept, printed.out.encode(), printed.err.encode()]
    assert not any(TOKEN.encode() in text for text in texts)


@pytest.mark.slow
@pytest.mark.skipif(INSTALLS not in os.environ, reason=f"installs much: set {INSTALLS}=1")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # gradio_client's connections
@pytest.mark.parametrize("private", [False, True], ids=["public", "private"])
def test_what_was_pushed_installs_in_a_fresh_environment_and_answers(
    hub: Hub, tmp_path: Path, *, private: bool
) -> None:
    gradio_client = pytest.importorskip("gradio_client")
    from tests.space_visitor import free_port, wait_for

    push("tiny", space=REPO, private=private)
    folder = checkout(pushed(hub), tmp_path / "app")
    # As the Hub builds it: pip sees this file alone, and the folder comes afterwards.
    required = checkout({"requirements.txt": pushed(hub)["requirements.txt"]}, tmp_path / "mount")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    limits = tmp_path / "constraints.txt"
    limits.write_text(_installed_versions())
    pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(limits)]
    ran = subprocess.run(
        [*pip, "-r", "requirements.txt"], cwd=required, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    port = free_port()
    log = tmp_path / "output.txt"
    variables = {
        **{k: v for k, v in environment(hub, tmp_path / "home").items() if k != "PYTHONPATH"},
        "GRADIO_SERVER_PORT": str(port),
        "MINITRON_SPACE_CACHE": str(tmp_path / "cache"),
        "GRADIO_TEMP_DIR": str(tmp_path / "gradio"),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(python), "app.py"], cwd=folder, stdout=output, stderr=output, env=variables
        )
        try:
            wait_for(f"http://127.0.0.1:{port}", process, log)
            client = gradio_client.Client(
                f"http://127.0.0.1:{port}", verbose=False, analytics_enabled=False
            )
            prompt = "It was the best of times,"
            answer = client.predict("tiny", prompt, 8, 0.0, 1.0, 0, api_name="/generate")
        finally:
            process.terminate()
            process.wait(60)
    assert answer


def _installed_versions() -> str:
    """What this environment has, so that the fresh one gets what was tested, and torch's build."""
    found = {d.name: d.version for d in distributions() if d.name and d.name != "minitron"}
    plain = {name: version.partition("+")[0] for name, version in found.items()}
    names = [name for name in plain if not re.fullmatch(r"pip|setuptools|wheel", name)]
    return "".join(f"{name}=={plain[name]}\n" for name in sorted(names))
