"""README's section "On the Hub", every block of it in order, against a Hub on this machine."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from minitron.cli import main
from minitron.sources.opening import zoo
from tests.hub_repositories import Account, Repository
from tests.hub_routes import Hub
from tests.hub_server import environment, serving, talk_to
from tests.test_readme import README, commands_of
from tests.tiny import tiny_model, write_text

pytestmark = [
    pytest.mark.slow,
    # huggingface_hub's own, on every upload of a large file.
    pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning"),
]
SECTION = README.partition("\n## On the Hub\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", SECTION, re.DOTALL)
TOKEN = "hf_aVerySecretToken"
PROMPT = "To be or not to be,"
CARD = (
    "---\nlicense: other\nlicense_name: nvidia-open-model-license\n"
    "license_link: https://example.org/license.pdf\n---\n\n# Base\n"
)
# nvidia/Minitron-8B-Base, a sixteenth as wide.
MINITRON_8B = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 4099,
    "partial_rotary_factor": 0.5,
}
ONLY_TRANSFORMERS = (
    "\nimport sys\n"
    "assert not any(m.startswith(('minitron', 'modeling_nemotron')) for m in sys.modules)\n"
)


def published(folder: Path) -> dict[str, bytes]:
    """A repository as NVIDIA's are: a pickle and no safetensors, no generation_config.json."""
    model = tiny_model(dtype=torch.bfloat16, **MINITRON_8B)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(zoo()["tiny"] / name, folder)
    (folder / "LICENSE").touch()
    (folder / "README.md").write_text(CARD)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@dataclass(frozen=True)
class Ran:
    """What is left when all blocks have run."""

    hub: Hub
    folder: Path
    stated: tuple[str, ...]  # by each python block

    def repository(self, repo: str) -> Repository:
        found = self.hub.repository("model", repo)
        assert found is not None, f"{repo} is not on the Hub"
        return found


def run_python(code: str, folder: Path, hub: Hub, home: Path) -> str:
    """In a process of its own, on a machine that has downloaded nothing yet."""
    alone = "" if "modeling_nemotron" in code else ONLY_TRANSFORMERS
    run = subprocess.run(
        [sys.executable, "-c", code + alone],
        env=environment(hub, home, TOKEN),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder, homes = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("homes")
    made = published(tmp_path_factory.mktemp("made"))
    write_text(folder / "calibration.jsonl", ["To be or not to be, that is the question. "] * 600)
    with serving() as hub, pytest.MonkeyPatch.context() as patch:
        hub.accounts[TOKEN] = Account("me")
        hub.add("nvidia/Minitron-8B-Base", made)
        hub.add("nvidia/Minitron-4B-Base", made)
        patch.setenv("DISABLE_SAFETENSORS_CONVERSION", "1")
        talk_to(hub, patch, homes / "shell", TOKEN)
        patch.chdir(folder)
        stated = []
        for number, (language, code) in enumerate(BLOCKS):
            if language == "python":
                stated.append(run_python(code, folder, hub, homes / str(number)))
            else:
                for command in commands_of(code):
                    main(shlex.split(command)[1:])
        yield Ran(hub, folder, tuple(stated))


def test_every_line_of_the_section_is_one_that_ran() -> None:
    shell = [code for language, code in BLOCKS if language != "python"]
    lines = [line for code in shell for line in code.replace("\\\n", " ").splitlines()]
    assert [shlex.split(line) for line in lines] == [
        shlex.split(command) for code in shell for command in commands_of(code)
    ]
    assert [language for language, _ in BLOCKS] == ["python", "", "python", ""]


def test_both_models_go_on_from_the_prompt(ran: Ran) -> None:
    assert len(ran.stated) == 2
    assert all(PROMPT in stated for stated in ran.stated)


def test_the_half_is_private_and_half_and_says_where_it_is_from(ran: Ran) -> None:
    half = ran.repository("me/minitron-4b")
    assert half.private
    files = half.commits[half.branches["main"]].files
    record = json.loads(files["minitron.json"].content)
    assert record["target"]["parameters"] == pytest.approx(
        record["source"]["parameters"] / 2, rel=0.05
    )
    base = ran.repository("nvidia/Minitron-8B-Base")
    assert record["source"]["revision"] == base.branches["main"]
    assert "base_model: nvidia/Minitron-8B-Base" in files["README.md"].content.decode()


def test_the_second_push_is_tagged_and_the_third_a_pull_request(ran: Ran) -> None:
    tagged = ran.repository("me/minitron-4b-v2")
    assert tagged.private
    assert tagged.tags == {"v2": tagged.branches["main"]}
    theirs = ran.repository("nvidia/Minitron-4B-Base")
    [proposed] = theirs.pulls.values()
    files = theirs.commits[proposed].files
    here = (ran.folder / "minitron-4b" / "model.safetensors").read_bytes()
    assert files["model.safetensors"].content == here
    assert "model.safetensors" not in theirs.commits[theirs.branches["main"]].files


def test_what_is_remade_is_what_was_pushed(ran: Ran) -> None:
    half = ran.repository("me/minitron-4b")
    pushed = half.commits[half.branches["main"]].files
    weights = sorted((ran.folder / "minitron-4b-again").glob("*.safetensors"))
    assert [path.name for path in weights] == [n for n in pushed if n.endswith(".safetensors")]
    for path in weights:
        assert sha256(path.read_bytes()).hexdigest() == pushed[path.name].sha256
