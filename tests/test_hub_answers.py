"""Whatever a Hub answers, a command ends soon, and as it should or with one line."""

import errno
import json
import logging
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, set_client_factory
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import _http

import minitron
from minitron.cli import main
from minitron.credentials import mask, mask_error, masked_logs, masked_traceback
from minitron.errors import MinitronError, OutputError, SourceError
from minitron.files.hub_errors import reason
from tests.hub_repositories import Account
from tests.hub_routes import Answer, Fault, Hub, Request
from tests.hub_server import environment, serving, talk_to
from tests.tiny import tiny_folder, zoo_tokenizer

# huggingface_hub's own, on every upload of a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
TOKEN = "hf_QmFuZ2xlc0FyZU5pY2VUb1dlYXI"
CARD = "---\nlicense: mit\nbase_model: Some/Model\n---\n# half\n"
NAME = "Some/Model"
DAY = {"Retry-After": "86400"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "half"
    tokenizer = zoo_tokenizer()
    tiny_folder(folder, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        hub.accounts[TOKEN] = Account("me")
        talk_to(hub, monkeypatch, tmp_path / "home", TOKEN)
        hub.add(NAME, {path.name: path.read_bytes() for path in folder.iterdir()})
        monkeypatch.chdir(tmp_path)
        yield hub
        close_session()


def fetch(folder: Path) -> None:
    minitron.convert(NAME, "here")


def range_by_range(folder: Path) -> None:
    minitron.convert(NAME, "here", low_disk=True)


def look(folder: Path) -> None:
    minitron.inspect(NAME)


def push(folder: Path) -> None:
    minitron.push(str(folder), "me/half", tag="v1", collection="Small ones")


Run = Callable[[Path], None]


# How long it waits


@pytest.mark.parametrize(
    ("run", "method", "path"),
    [
        (look, "HEAD", "/resolve/"),
        (look, "GET", "/resolve/"),
        (look, "GET", "/api/models/"),
        (fetch, "GET", "/storage/"),
        (range_by_range, "GET", "/storage/"),
        (push, "GET", "/whoami"),
        (push, "POST", "/repos/create"),
        (push, "POST", "/preupload/"),
        (push, "POST", "/objects/batch"),
        (push, "PUT", "/lfs/"),
        (push, "POST", "/commit/"),
        (push, "POST", "/tag/"),
    ],
)
def test_a_wait_of_a_day_is_refused_at_once(
    hub: Hub, folder: Path, run: Run, method: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    for module in (_http, sys.modules["minitron.files.hub_retry"]):
        monkeypatch.setattr(module.time, "sleep", waited.append)
    hub.fail(Fault(method, path, status=429, headers=DAY, times=99))
    if method == "PUT":
        hub.stored.clear()  # it would not ask for what it has
    with pytest.raises(
        MinitronError, match=r"the Hub asks to wait 1 day \(HTTP 429\), and minitron waits 5 min"
    ):
        run(folder)
    assert hub.faults[0].times == 98
    assert not any(waited)


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "9" * 5000},
        {"RateLimit": '"api";r=0;t=86400', "RateLimit-Policy": '"fixed window";"api";q=5;w=300'},
        {"Retry-After": "301"},
    ],
    ids=["digits", "ratelimit", "a little"],
)
def test_every_way_to_ask_for_a_long_wait_is_understood(
    hub: Hub, folder: Path, headers: dict[str, str]
) -> None:
    hub.fail(Fault("GET", "/api/models/", status=429, headers=headers, times=99))
    with pytest.raises(SourceError, match="the Hub asks to wait "):
        look(folder)


def test_waits_that_add_up_are_refused_and_each_is_reported(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr("minitron.files.hub_retry.time.monotonic", lambda: now[0])
    for module in (_http, sys.modules["minitron.files.hub_retry"]):
        monkeypatch.setattr(
            module.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds)
        )
    hub.fail(Fault("GET", "/api/models/", status=429, headers={"Retry-After": "250"}, times=99))
    with pytest.raises(SourceError, match=r"asks to wait 4 minutes .* after 8 minutes of waiting"):
        look(folder)
    assert now[0] < 600
    assert caplog.messages.count("the Hub asks to wait 4 minutes (HTTP 429): waiting") == 2


@pytest.mark.parametrize(("run", "path"), [(fetch, "/storage/"), (look, "/api/models/")])
def test_a_transfer_that_brings_next_to_nothing_is_refused(
    hub: Hub, folder: Path, run: Run, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.files.hub_retry.STALLED_AFTER", 0.2)
    hub.fail(Fault("GET", path, trickle=0.02, times=99))
    with pytest.raises(SourceError, match=r"cannot be fetched: the transfer has stalled: \d+ "):
        run(folder)


def test_a_slow_transfer_is_waited_for(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.files.hub_retry.STALLED_AFTER", 0.02)
    monkeypatch.setattr("minitron.files.hub_retry.LEAST_BYTES", 4)
    hub.fail(Fault("GET", "/api/models/", trickle=0.001))
    look(folder)


def test_a_silent_hub_is_not_waited_for(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.files.hub_retry._READ_TIMEOUT", 0.1)
    hub.fail(Fault("GET", "/whoami", delay=0.4, times=9))
    with pytest.raises(OutputError, match="cannot be reached, or sent nothing for too long"):
        push(folder)


def test_other_users_of_the_client_keep_their_own_patience(hub: Hub, folder: Path) -> None:
    set_client_factory(_http.default_client_factory)
    look(folder)
    hub.fail(Fault("GET", "/api/models/", status=429, headers=DAY))
    assert _http.get_session().get(f"{hub.url}/api/models/{NAME}").status_code == 429


# What it prints


SECRETS = [
    (f"Authorization: Bearer {TOKEN}", "Authorization: ***"),
    ("{'authorization': 'Bearer abcdefgh123', 'x': 1}", "{'authorization': '***', 'x': 1}"),
    ('{"Authorization":"Basic bWU6cHc="}', '{"Authorization":"***"}'),
    ("(b'Authorization', b'Bearer abcdefgh123')", "(b'Authorization', b'***')"),
    ("Proxy-Authorization: Basic bWU6cHc=", "Proxy-Authorization: ***"),
    (f"the token {TOKEN}.", "the token ***."),
    ("hf_abcdefghijklmnopqrstuvwxyzABCDEFGHI", "***"),
    ("hf_oauth_eyJhbGciOi.eyJzdWIi.c2ln", "***"),
    ("proxy http://me:secret@proxy:8080/", "proxy http://***@proxy:8080/"),
    ("https://s3/x?X-Amz-Signature=ab12&part=3", "https://s3/x?X-Amz-Signature=***&part=3"),
]
HARMLESS = [
    "hf_hub_download of nvidia/Minitron-8B-Base@main failed",
    "https://huggingface.co/nvidia/Minitron-8B-Base/resolve/main/config.json?download=true",
    "the bearer of a token; authorization is required",
    "hf_transfer and /home/me/hf_models/half",
]


@pytest.mark.parametrize(
    ("text", "shown"), [*SECRETS, *zip(HARMLESS, HARMLESS, strict=True)], ids=lambda text: text[:20]
)
def test_credentials_are_masked_and_nothing_else(
    text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert mask(text) == shown
    assert str(MinitronError(text)) == shown


def test_a_token_of_any_form_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "my+own/secret")
    assert mask("?t=my%2Bown%2Fsecret my+own/secret") == "?t=*** ***"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("stored-elsewhere\n")
    assert mask("it is stored-elsewhere") == "it is ***"


@pytest.mark.parametrize(
    ("run", "method", "path"),
    [
        (look, "GET", "/api/models/"),
        (look, "HEAD", "/resolve/"),
        (fetch, "GET", "/storage/"),
        (push, "GET", "/whoami"),
        (push, "POST", "/preupload/"),
        (push, "POST", "/commit/"),
    ],
)
@pytest.mark.parametrize("status", [400, 403, 418, 500])
def test_a_hub_that_repeats_what_it_was_sent_prints_no_token(
    hub: Hub,
    folder: Path,
    run: Run,
    method: str,
    path: str,
    status: int,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    message_text = f"refused: Authorization: Bearer {TOKEN} of http://me:{TOKEN}@proxy"
    headers = {"X-Error-Message": message_text, "X-HF-Warning": message_text, "X-Request-Id": TOKEN}
    body = json.dumps({"error": message_text, "errors": [{"message": message_text}]}).encode()
    hub.fail(Fault(method, path, status=status, headers=headers, body=body, times=99))
    with masked_logs(), pytest.raises(MinitronError) as refused:
        run(folder)
    error: BaseException | None = refused.value
    while error is not None:
        assert TOKEN not in f"{error} {error!r} {vars(error)}"
        error = error.__cause__ or error.__context__
    assert TOKEN not in caplog.text + "".join(capfd.readouterr())


def test_what_the_command_line_logs_and_traces_is_masked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def fail(**options: Any) -> None:
        logging.getLogger("some.library").warning("sent %s", TOKEN)
        raise RuntimeError(f"no {TOKEN}") from ValueError(TOKEN)

    monkeypatch.setattr("minitron.verbs.card.card", fail)
    shown: list[str] = []
    hook = masked_traceback(lambda kind, error, trace: shown.append(f"{error}{error.__cause__}"))
    with pytest.raises(RuntimeError) as raised:
        main(["card", "half"])
    hook(raised.type, raised.value, raised.tb)
    assert shown == ["no ******"]
    assert caplog.messages == ["sent ***"]
    loop = ValueError(TOKEN)
    loop.__cause__ = loop
    mask_error(loop)
    assert str(loop) == "***"


# What it understands


HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@pytest.mark.parametrize("content", [HTML, b"", b"{", b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize(
    ("run", "method", "path"),
    [
        (look, "GET", "/api/models/"),
        (push, "GET", "/whoami"),
        (push, "POST", "/repos/create"),
        (push, "POST", "/preupload/"),
        (push, "POST", "/commit/"),
    ],
)
def test_what_is_no_json_is_one_line(
    hub: Hub, folder: Path, run: Run, method: str, path: str, content: bytes
) -> None:
    hub.fail(Fault(method, path, status=200, body=content, times=99))
    with pytest.raises(MinitronError, match=r"its answer is n|its answer has|the token's account"):
        run(folder)


@pytest.mark.parametrize(
    "account", [{}, [], 5, "me", {"name": 5}, {"name": "a\x1b[2J"}, {"name": "me", "orgs": [{}]}]
)
def test_an_account_without_a_name_is_one_line(hub: Hub, folder: Path, account: Any) -> None:
    hub.fail(Fault("GET", "/whoami", status=200, body=json.dumps(account).encode(), times=9))
    with pytest.raises(OutputError, match=r"^cannot push to me/half: it"):
        push(folder)


def test_large_files_that_the_hub_calls_otherwise_are_one_line(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "half")
    (tmp_path / "half" / "second.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    upload = {"upload": {"href": f"{hub.url}/lfs/x"}}
    objects = [{"oid": f"{n}" * 64, "size": 2, "actions": upload} for n in range(2)]
    body = json.dumps({"objects": objects, "transfer": "basic"}).encode()
    hub.fail(Fault("POST", "/objects/batch", status=200, body=body, times=9))
    with pytest.raises(OutputError, match="its answer is not what the Hub's interface says"):
        push(tmp_path / "half")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError("Consistency check failed: file should be of size 5"), "check HF_ENDPOINT"),
        (ValueError("preupload_info is improperly formatted:"), "formatted; check HF_ENDPOINT"),
        (OSError(errno.ENOSPC, "No space left on device"), "make room on the disk"),
        (OSError(errno.EROFS, "Read-only file system", "/cache"), "set HF_HOME to a folder"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/cache"), "set HF_HOME"),
        (HFValidationError("Repo id must be in the form 'owner/name'"), "check the name"),
    ],
)
def test_every_reason_says_what_to_do(error: Exception, remedy: str) -> None:
    assert remedy in reason(error, NAME)


def test_an_endless_redirect_is_one_line(hub: Hub, folder: Path) -> None:
    for method in ("GET", "HEAD"):
        hub.fail(Fault(method, "/", status=302, headers={"Location": "/api/models/x"}, times=999))
    with pytest.raises(SourceError, match="sends from address to address without end"):
        look(folder)


@pytest.mark.parametrize("key", ["X-Repo-Commit", "ETag", "X-Linked-Etag"])
@pytest.mark.parametrize("value", ["../../../out", "..", "a b", "x" * 300])
def test_headers_that_name_no_file_of_the_cache_write_none(
    hub: Hub, folder: Path, key: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = hub.answer

    def changed(request: Request) -> Answer:
        given = answer(request)
        if "/resolve/" not in request.path or "Location" in given.headers:
            return given
        return replace(
            given, headers={**given.headers, key: f'"{value}"' if key == "ETag" else value}
        )

    monkeypatch.setattr(hub, "answer", changed)
    with pytest.raises(SourceError, match=f"its answer has .* as {key}, which is none"):
        look(folder)
    assert not list(tmp_path.glob("out*"))


VALUES: list[Any] = [
    None,
    5,
    -1,
    1e400,
    True,
    "",
    "../x",
    "a\x1b[2J\n",
    [],
    {},
    [None],
    "x" * 10_000,
]
RAW = [HTML, b"", b"null", b"5", b"[]", b"{}", b'"x"', b"[null]", b"[5]", b"[[]]", b'[{"path": 5}]']
HEADERS: list[dict[str, str]] = [
    {"Content-Range": "bytes -5-3/10"},
    {"Content-Range": "bytes 0-99999999999999/5"},
    {"Content-Encoding": "gzip"},
    {"Link": '<http://[>; rel="next"'},
    {"Location": "http://"},
    {"ETag": ""},
    {"X-Linked-Size": "-3"},
    {"X-Linked-Size": "x"},
    {"X-Repo-Commit": "0" * 40},
    {"Retry-After": "-1"},
]


def mutated(answer: Answer, draw: random.Random) -> Answer:
    """The answer with one thing wrong: a status, header, its bytes, or a value in its JSON."""
    kind = draw.choice(["json", "json", "json", "raw", "cut", "header", "status"])
    if kind == "status":
        return replace(
            answer, status=draw.choice([100 + 4, 204, 206, 304, 307, 400, 404, 416, 599])
        )
    if kind == "header":
        return replace(answer, headers={**answer.headers, **draw.choice(HEADERS)})
    if kind == "cut":
        return replace(answer, body=answer.body[: draw.randrange(len(answer.body) + 1)])
    try:
        content = json.loads(answer.body)
    except ValueError:
        return replace(answer, body=draw.choice(RAW))
    places = [(None, None), *_places(content)]
    holder, key = draw.choice(places)
    if kind == "raw" or holder is None:
        return replace(answer, body=draw.choice(RAW))
    if draw.random() < 0.3:
        del holder[key]
    else:
        holder[key] = draw.choice(VALUES)
    return replace(answer, body=json.dumps(content).encode())


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    keys: Any = list(content) if isinstance(content, dict) else range(len(content))
    for key in keys:
        yield content, key
        if isinstance(content[key], dict | list):
            yield from _places(content[key])


def ends_well(hub: Hub, folder: Path, run: Run, draw: random.Random) -> None:
    """Run with one answer of some path changed; whatever is raised must be one line."""
    answer, asked, wrong = hub.answer, [0], draw.randrange(12)

    def changed(request: Request) -> Answer:
        asked[0] += 1
        given = answer(request)
        return mutated(given, draw) if asked[0] - 1 in (wrong, wrong + 1) else given

    hub.answer = changed  # type: ignore[method-assign]
    try:
        with suppress(MinitronError):  # which is one line whatever it is given
            run(folder)
    finally:
        hub.answer = answer  # type: ignore[method-assign]


@pytest.mark.parametrize("run", [look, fetch, range_by_range, push])
@pytest.mark.parametrize("seed", range(8))
def test_a_hub_that_answers_nonsense_ends_in_one_line(
    hub: Hub, folder: Path, run: Run, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr("minitron.files.hub_retry._READ_TIMEOUT", 1)
    monkeypatch.setattr("minitron.files.hub_retry._CHANGE_TIMEOUT", 1)
    ends_well(hub, folder, run, random.Random(f"{run.__name__} {seed}"))


@pytest.mark.parametrize("text", ["a", "a1+.-", "authorization", "bearer ", "?sig", "http://", " "])
def test_a_long_message_is_masked_in_no_time(text: str) -> None:
    """A parser may quote the whole file: a pattern that starts anew at each letter would hang."""
    started = time.monotonic()
    assert mask(text * 100_000) == text * 100_000
    assert time.monotonic() - started < 5


# Where there is no network


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
@pytest.mark.parametrize(
    "command",
    [
        "inspect other/model",
        "prune other/model out --hidden-size 36 --scores random",
        "evaluate tiny --corpus other/text",
        "push {folder} me/half",
        "push --space me/demo tiny",
    ],
)
def test_without_a_network_each_command_ends_in_one_line_at_once(
    command: str,
    endpoint: str,
    hub: Hub,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", endpoint)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    waits: list[float] = []
    for client in ("huggingface_hub.utils._http", "minitron.files.hub_retry"):
        monkeypatch.setattr(f"{client}.time.sleep", waits.append)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    with pytest.raises(SystemExit) as ended:
        main(command.format(folder=folder).split())
    assert ended.value.code == 2
    assert waits == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capsys.readouterr().err.count("\n") == 1


def test_a_process_without_a_network_says_so_in_one_line(tmp_path: Path) -> None:
    nowhere = {**environment(Hub(), tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "minitron", "inspect", "nvidia/Minitron-8B-Base"]
    run = subprocess.run(command, env=nowhere, capture_output=True, text=True, timeout=20)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        "minitron: nvidia/Minitron-8B-Base is neither a folder nor in the cache, and the Hub "
        "cannot be reached: check the name and the connection\n"
    )


def test_a_connection_that_was_there_is_tried_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    minitron.inspect(NAME)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    waits: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waits.append)
    with pytest.raises(SourceError, match="the Hub cannot be reached"):
        minitron.inspect("other/model")
    assert waits
