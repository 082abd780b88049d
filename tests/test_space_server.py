"""The Space as it is served: to programs, to many at once, to hostile clients, and for long."""

import itertools
import json
import math
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

gradio_client = pytest.importorskip("gradio_client")

from minitron.space.jobs.results import KEEP_RESULTS  # noqa: E402
from minitron.space.page import SESSIONS  # noqa: E402
from tests.space_visitor import RunningSpace, running_space  # noqa: E402

# httpx and gradio_client leave connections to the garbage collector.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

PROMPT = "It was the best of times,"
SETTINGS: tuple[float, ...] = (8, 0.0, 1.0, 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the Space's temporary files are, gradio's included."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Iterator[RunningSpace]:
    own = {"TMPDIR": str(place), "GRADIO_TEMP_DIR": str(place / "gradio")}
    with running_space(tmp_path_factory.mktemp("space"), **own) as running:
        yield running
    assert not list(place.glob("minitron-*")), "SIGTERM left files"
    assert not [path for path in (place / "gradio").rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def client(space: RunningSpace, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return visitor(space, tmp_path_factory.mktemp("downloads"))


def visitor(space: RunningSpace, downloads: Path) -> Any:
    return gradio_client.Client(
        space.url, verbose=False, download_files=str(downloads), analytics_enabled=False
    )


def test_it_starts_and_answers_from_a_copy_of_its_folder(client: Any) -> None:
    assert client.predict("tiny", PROMPT, *SETTINGS, api_name="/generate")


def test_the_endpoints_are_these_and_documented(client: Any) -> None:
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/generate", "/compare", "/plan", "/prune"}
    parameters = {
        name: [p["parameter_name"] for p in endpoint["parameters"]]
        for name, endpoint in named.items()
    }
    settings = ["prompt", "max_new_tokens", "temperature", "top_p", "seed"]
    sizes = ["hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"]
    assert parameters == {
        "/generate": ["model", *settings],
        "/compare": ["models", *settings],
        "/plan": ["model", *sizes],
        "/prune": ["model", *sizes],
    }


def test_the_descriptions_of_tools_are_sentences(space: RunningSpace) -> None:
    pytest.importorskip("mcp")
    with urlopen(f"{space.url}/gradio_api/mcp/schema", timeout=30) as answer:
        tools = json.load(answer)
    assert {tool["name"] for tool in tools} == {"generate", "compare", "plan", "prune"}
    assert not [tool for tool in tools if ",," in tool["description"]]


def test_generate_returns_the_text_of_minitron_generate(client: Any) -> None:
    import minitron

    text = client.predict("tiny", PROMPT, 24, 0.9, 0.8, 5, api_name="/generate")
    assert text == minitron.generate(
        "tiny", PROMPT, max_new_tokens=24, temperature=0.9, top_p=0.8, seed=5
    )


def test_compare_returns_every_number_and_how_it_is_measured(client: Any) -> None:
    answer = client.predict(["tiny"], PROMPT, 16, 0.0, 1.0, 0, api_name="/compare")
    (column,) = answer["columns"]
    assert column["model"] == "tiny"
    assert column["tokens"] == 16
    assert column["tokens_per_second"] > 0
    assert column["seconds_to_first_token"] > 0
    assert set(answer["measured"]) <= set(column)


def test_plan_and_prune_agree_and_the_zip_loads_in_transformers(
    client: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sizes = (160, 608, 6, 5)
    plan = client.predict("tiny", *sizes, api_name="/plan")
    archive, record = client.predict("tiny", *sizes, api_name="/prune")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"]
    assert model.num_parameters() == plan["parameters"] == record["after"]["parameters"]
    assert record["before"]["loss"] < record["after"]["loss"] < math.log(4096) + 2
    assert json.loads((folder / "minitron.json").read_text())["target"]["num_hidden_layers"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("huge", PROMPT, *SETTINGS), "choose tiny"),
        (("../../etc/passwd", PROMPT, *SETTINGS), "choose tiny"),
        (("nvidia/Minitron-8B-Base", PROMPT, *SETTINGS), "choose tiny"),
        (("tiny", "", *SETTINGS), "prompt is empty"),
        (("tiny", "a\x07b", *SETTINGS), "control character"),
        (("tiny", PROMPT, -1, 0.0, 1.0, 0), "max_new_tokens is -1"),
        (("tiny", PROMPT, 8, -0.5, 1.0, 0), "temperature is -0.5"),
        (("tiny", PROMPT, 8, 0.0, 1.5, 0), "top_p is 1.5"),
        (("tiny", PROMPT, 8, 0.0, 1.0, -7), "seed is -7"),
    ],
)
def test_a_wrong_value_is_named_and_the_server_answers_on(
    arguments: tuple[Any, ...], message: str, client: Any
) -> None:
    with pytest.raises(Exception, match=message):
        client.predict(*arguments, api_name="/generate")
    assert client.predict("tiny", PROMPT, *SETTINGS, api_name="/generate")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", '"hot"', "null", "[1]"])
def test_a_setting_that_is_no_number_is_an_error_event(
    number: str, space: RunningSpace, client: Any
) -> None:
    """Gradio's own client sends no NaN; anybody else can."""
    body = f'{{"data": ["tiny", "{PROMPT}", 8, {number}, 1.0, 0]}}'.encode()
    call = f"{space.url}/gradio_api/call/generate"
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(call, body, headers), timeout=30) as answer:
        event = json.load(answer)["event_id"]
    with urlopen(f"{call}/{event}", timeout=30) as answer:
        events = answer.read().decode()
    assert "event: error" in events
    assert "event: complete" not in events
    assert client.predict("tiny", PROMPT, *SETTINGS, api_name="/generate")


def test_a_prompt_of_100_kb_is_shortened_and_answered(client: Any) -> None:
    assert client.predict("tiny", "word " * 20_000, *SETTINGS, api_name="/generate")
    answer = client.predict(["tiny"], "word " * 20_000, *SETTINGS, api_name="/compare")
    [notice] = answer["columns"][0]["notices"]
    assert notice == "The prompt is cut: only its last 504 tokens fit before the answer."


def test_the_text_of_special_tokens_is_answered_as_text(client: Any) -> None:
    plain = client.predict("tiny", PROMPT, *SETTINGS, api_name="/generate")
    assert client.predict("tiny", f"</s><s>{PROMPT}", *SETTINGS, api_name="/generate") != plain


@pytest.mark.parametrize(
    "sizes", [(-4, None, None, None), (None, None, 7, None), (4096, None, None, None)]
)
@pytest.mark.parametrize("endpoint", ["/plan", "/prune"])
def test_sizes_out_of_bounds_are_named(sizes: tuple[Any, ...], endpoint: str, client: Any) -> None:
    with pytest.raises(Exception, match=r"hidden_size|num_attention_heads|heads"):
        client.predict("tiny", *sizes, api_name=endpoint)


def test_twenty_visitors_at_once_are_all_answered_each_with_their_own_text(
    space: RunningSpace, client: Any, tmp_path: Path
) -> None:
    seed_of = {f"Chapter {number}. The": number for number in range(20)}
    alone = {
        prompt: client.predict("tiny", prompt, 12, 1.0, 1.0, seed, api_name="/generate")
        for prompt, seed in seed_of.items()
    }
    answers: dict[str, str] = {}

    def visit(prompt: str) -> None:
        answers[prompt] = visitor(space, tmp_path).predict(
            "tiny", prompt, 12, 1.0, 1.0, seed_of[prompt], api_name="/generate"
        )

    threads = [threading.Thread(target=visit, args=(prompt,)) for prompt in seed_of]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == alone
    assert len(set(alone.values())) == 20


def test_memory_is_flat_over_500_requests(space: RunningSpace) -> None:
    def ask(times: int) -> None:
        for number in range(times):
            data = ["tiny", f"{number}: the", 2, 1.0, 1.0, number]
            assert "event: complete" in called(space, "generate", data, session="one")

    ask(100)  # caches, threads and arenas have their size
    before = space.memory
    ask(500)
    assert space.memory - before < 30e6


def test_memory_is_flat_over_300_new_visitors(space: RunningSpace) -> None:
    def visit(times: int) -> None:
        for _ in range(times):
            assert "event: error" in called(space, "generate", ["nobody", PROMPT, *SETTINGS])

    visit(SESSIONS + 20)
    before = space.memory
    visit(300)
    assert space.memory - before < 15e6


def test_the_newest_prunings_are_kept_once_and_no_more(space: RunningSpace, place: Path) -> None:
    for number in range(KEEP_RESULTS + 2):
        events = called(space, "prune", ["tiny", None, 608 - 32 * number, None, 5])
        (archive, _) = json.loads(events.rpartition("data: ")[2])
        with urlopen(f"{space.url}/gradio_api/file={archive['path']}", timeout=30) as answer:
            assert len(answer.read()) == Path(archive["path"]).stat().st_size
    assert len(list(place.rglob("*.zip"))) == KEEP_RESULTS
    assert len(list(place.rglob("model.safetensors"))) == KEEP_RESULTS


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        ("upload", "multipart/form-data; boundary=x", 415),
        ("upload?upload_id=1", "multipart/form-data; boundary=x", 415),
        ("process_recording", "multipart/form-data; boundary=x", 415),
        ("call/generate", "application/json", 413),
        ("run/generate", "application/json", 413),
    ],
)
def test_files_and_endless_requests_are_refused_and_nothing_is_kept(
    path: str, kind: str, status: int, space: RunningSpace, place: Path
) -> None:
    head = 'Content-Disposition: form-data; name="files"; filename="a.bin"'
    begin, end = f"--x\r\n{head}\r\n\r\n".encode(), b"\r\n--x--\r\n"
    body = itertools.chain([begin], itertools.repeat(bytes(2**20), 20), [end])  # in chunks
    before, files = space.memory, {*place.rglob("*")}
    request = Request(f"{space.url}/gradio_api/{path}", body, {"Content-Type": kind})
    with pytest.raises(HTTPError) as refused:
        urlopen(request, timeout=30)
    refused.value.close()
    assert refused.value.code == status
    assert {*place.rglob("*")} == files
    assert space.memory - before < 10e6


def called(space: RunningSpace, name: str, data: list[Any], *, session: str | None = None) -> str:
    """What an endpoint says to a program that was never here, or again to that of a session.

    gradio's own client takes fifty times the processor time.
    """
    call = f"{space.url}/gradio_api/call/{name}"
    body = json.dumps({"data": data, "session_hash": session}).encode()
    with urlopen(Request(call, body, {"Content-Type": "application/json"}), timeout=30) as answer:
        event = json.load(answer)["event_id"]
    with urlopen(f"{call}/{event}", timeout=120) as answer:
        return str(answer.read().decode())


def test_mcp_clients_find_the_same_four_tools(space: RunningSpace) -> None:
    pytest.importorskip("mcp")
    with urlopen(f"{space.url}/gradio_api/mcp/schema", timeout=30) as answer:
        tools = {tool["name"]: tool for tool in json.load(answer)}
    assert len(tools) == 4
    for name in ("generate", "compare", "plan", "prune"):
        (tool,) = [tool for called, tool in tools.items() if called.endswith(name)]
        assert tool["description"]
        described = tool["inputSchema"]["properties"].values()
        assert all(one.get("description") for one in described), name
