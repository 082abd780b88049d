"""Run the commands on damaged files: none may end in a traceback, a crash or a hang.

Writes small valid files of each kind and damages one at a time: flips or removes bytes; replaces
values of JSON or YAML by others, by huge numbers, duplicate keys, deep nesting or aliases; or
writes the content of another file. The commands that read the file run in a forked process with
limited memory and time. Each end is counted: `right` (the command succeeds, files complete),
`line` (an error of one line, exit code 2), `traceback`, `crash` (a signal), `hang`. A test runs
some of each kind; to run thousands:

    python benchmarks/damaged_files.py --count 3000 --seed 7
"""

import argparse
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 30
BYTES = 3 << 30  # of address space besides the parent's
ENDS = ("right", "line", "traceback", "crash", "hang")
_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    10**9,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud83d\ude00 \u202e\x1b[31m",
    "a" * 5000,
    [],
    ["x"],
    [[1]],
    {},
    {"x": 1},
    {"x": {"y": []}},
]


@dataclass(frozen=True)
class Case:
    """One of the valid files, and the commands that read it."""

    file: str
    commands: tuple[tuple[str, ...], ...]  # {root} is the folder of this attempt


@dataclass(frozen=True)
class Ended:
    """How a command ended, and its last output."""

    end: str
    output: str


def write_good_files(root: Path) -> None:
    """Write a model with its companion files, importance, a teacher cache, a recipe and a text."""
    import numpy as np

    import minitron
    from minitron.sources.opening import zoo
    from tests.tiny import tiny_folder

    source = tiny_folder(root / "source", "llama", vocab_size=4096)
    for path in zoo()["tiny"].glob("tokenizer*"):
        shutil.copy(path, source)
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (source / "README.md").write_text("---\nlicense: mit\nlanguage:\n- en\n---\n\n# A model\n")
    np.save(root / "ids.npy", np.random.default_rng(0).integers(4096, size=(4, 8)))
    ids = str(root / "ids.npy")
    (root / "text.txt").write_text("It was the best of times, it was the worst of times.\n" * 20)
    minitron.importance(str(source), str(root / "scores.safetensors"), corpus=ids)
    cut = {"hidden_size": 36, "num_hidden_layers": 3}
    scores = str(root / "scores.safetensors")
    minitron.prune(str(source), str(root / "made"), importance=scores, **cut)
    minitron.evaluate(str(root / "made"), corpus=ids, record=True)
    minitron.teacher_cache(str(source), str(root / "cache"), corpus=ids, top_k=3)
    minitron.convert(str(source), str(root / "model.gguf"), to="gguf", dtype="q8_0")
    (root / "recipe.yaml").write_text("hidden_size: 36\nscores: random\nseed: 3\n")


def cases() -> tuple[Case, ...]:
    """All files to damage, with the commands that read them."""
    cut = ("--hidden-size", "30", "--scores", "random")
    prune = ("prune", "{root}/source", "{root}/out", *cut)
    convert = ("convert", "{root}/source", "{root}/out")
    generate = ("generate", "{root}/source", "It was", "--max-new-tokens", "2")
    evaluate = ("evaluate", "{root}/source", "--corpus", "{root}/text.txt", "--seq-len", "16")
    card = ("card", "{root}/made", "--overwrite")
    again = ("remake", "{root}/made", "{root}/out")
    record = ("evaluate", "{root}/made", "--corpus", "{root}/ids.npy", "--record")
    publish = ("check-publishable", "{root}/made")
    scored = ("--importance", "{root}/scores.safetensors")
    taught = ("--teacher-cache", "{root}/cache", "--corpus", "{root}/ids.npy", "--steps", "1")
    distill = ("distill", "{root}/source", "{root}/out", *taught)
    return (
        Case("source/tokenizer.json", (generate, evaluate, convert)),
        Case("source/tokenizer_config.json", (generate, evaluate)),
        Case("source/config.json", (("inspect", "{root}/source"), prune, generate)),
        Case("source/generation_config.json", (generate, convert)),
        Case("source/README.md", (convert, prune)),
        Case("made/minitron.json", (card, again, record, publish)),
        Case("made/README.md", (("card", "{root}/made"), publish, record)),
        Case("made/config.json", (card, publish)),
        Case("scores.safetensors", (("prune", "{root}/source", "{root}/out", *scored, *cut[:2]),)),
        Case("cache/teacher-cache.json", (distill,)),
        Case("cache/shard-00000.safetensors", (distill,)),
        Case("cache/config.json", (distill,)),
        Case(
            "model.gguf",
            tuple((*words[:1], "{root}/model.gguf", *words[2:]) for words in (convert, generate)),
        ),
        Case(
            "recipe.yaml",
            (("prune", "{root}/source", "{root}/out", "--recipe", "{root}/recipe.yaml"),),
        ),
    )


def damaged(content: bytes, name: str, others: list[bytes], chance: random.Random) -> bytes:
    """The content with one fault."""
    ways: list[Callable[[], bytes]] = [
        lambda: _flipped(content, chance),
        lambda: content[: chance.randrange(len(content) + 1)],
        lambda: chance.choice(others),
        lambda: content.replace(b"\n", b"\x00", 1),
        lambda: b"\xff\xfe" + content.decode("utf-8", "replace").encode("utf-16-le"),
    ]
    if name.endswith(".json"):
        ways += [lambda: _replaced(content, chance)] * 8
        ways += [lambda: b"[" * 10**5, lambda: _twice(content, chance)]
    if name.endswith((".yaml", ".md")):
        ways += [lambda: _yaml(content, chance)] * 6
    if name.endswith(".safetensors"):
        ways += [lambda: _header(content, chance)] * 8
    if name.endswith(".gguf"):
        ways += [lambda: _numbers(content, chance)] * 12
    return chance.choice(ways)()


def _flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 4, 40))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each value within a value; of long lists, to the first few only."""
    items: Any = ()
    if isinstance(value, dict):
        items = list(value.items())[:40]
    elif isinstance(value, list):
        items = list(enumerate(value))[:5]
    for key, item in items:
        yield (*at, key)
        yield from _places(item, (*at, key))


def _replaced(content: bytes, chance: random.Random) -> bytes:
    """A JSON text with one value replaced by one of another type, or removed."""
    value = json.loads(content)
    way = chance.choice(list(_places(value)))
    inner = value
    for key in way[:-1]:
        inner = inner[key]
    if chance.random() < 0.15:
        del inner[way[-1]]
    else:
        inner[way[-1]] = chance.choice(_VALUES)
    return json.dumps(value).encode()


def _twice(content: bytes, chance: random.Random) -> bytes:
    key = chance.choice(list(json.loads(content)))
    doubled = f'{{"{key}": {json.dumps(chance.choice(_VALUES))},'
    return content.replace(b"{", doubled.encode(), 1)


def _header(content: bytes, chance: random.Random) -> bytes:
    """The same in a safetensors header, and in JSON text within its metadata."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    inner = header.get("__metadata__", {}).get("minitron")
    if inner is not None and chance.random() < 0.6:
        header["__metadata__"]["minitron"] = _replaced(inner.encode(), chance).decode()
        text = json.dumps(header).encode()
    else:
        text = _replaced(content[8 : 8 + length], chance)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _numbers(content: bytes, chance: random.Random) -> bytes:
    """A number of the metadata, or of the places of tensors behind the vocabulary, replaced."""
    start, stop = chance.choice(((4, 1500), (content.rindex(b"token_embd"), len(content) // 3)))
    place = chance.randrange(start, stop)
    value = chance.choice((0, 1, 2, 9, 255, 1 << 31, 1 << 33, (1 << 63) - 1))
    return content[:place] + value.to_bytes(8, "little") + content[place + 8 :]


def _yaml(content: bytes, chance: random.Random) -> bytes:
    """A YAML text with one value replaced, aliased, or referring to itself."""
    lines = content.decode().splitlines()
    block = [n for n, line in enumerate(lines) if ": " in line] or [0]
    number = chance.choice(block)
    key = lines[number].partition(":")[0] or "license"
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
        f"{n}: &{n} [{','.join([f'*{o}'] * 9)}]" for o, n in zip("abcdefg", "bcdefgh", strict=True)
    )
    texts = [
        f"{key}: &x [*x]",
        f"{key}: 2024-13-45",
        f"{key}: 2024-01-01",
        f"{key}: !!python/object:os.system x",
        f"{key}: {'[' * 2000}",
        f"{key}: {chance.choice(_VALUES)!r}",
        f"{key}: {{a: [1, {{b: c}}]}}",
        f"{key}: .nan",
        f"{key}: 0x{'f' * 5000}",
        f"? [{key}]\n: 1",
        f"<<: {{{key}: 1}}",
        laughs,
    ]
    lines[number] = chance.choice(texts)
    return "\n".join([*lines, ""]).encode("utf-8", "replace")


def run(command: tuple[str, ...]) -> None:
    """Run a command line; for `push`, only its check of the folder."""
    from minitron import cli
    from minitron.errors import MinitronError

    if command[0] != "check-publishable":
        cli.main(list(command))
        return
    from minitron.publish.publishable import check_publishable
    from minitron.verbs.push import _commit_message

    try:
        check_publishable(Path(command[1]))
        _commit_message(Path(command[1]), None)
    except MinitronError as error:
        print(f"minitron: {error}", file=sys.stderr)
        sys.exit(2)


def ended(command: tuple[str, ...]) -> Ended:
    """Run a command in a forked process with limited memory and time."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _in_child(command, writing)
    os.close(writing)
    deadline, output = time.monotonic() + SECONDS, b""
    os.set_blocking(reading, False)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        with suppress(BlockingIOError):
            output += os.read(reading, 1 << 16)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reading)
            return Ended("hang", "")
        time.sleep(0.005)
    os.close(reading)
    text = output.decode("utf-8", "replace")
    if os.WIFSIGNALED(status):
        return Ended("crash", f"signal {os.WTERMSIG(status)}: {text[-300:]}")
    return Ended(("right", "traceback", "line")[min(os.WEXITSTATUS(status), 2)], text[-1500:])


def _in_child(command: tuple[str, ...], writing: int) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
    code, out, err = 0, io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            run(command)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
        lines = [one for one in err.getvalue().splitlines() if one.startswith("minitron: ")]
        if code == 2 and (len(lines) != 1 or len(lines[0]) > 600):
            code = 1
    except BaseException:  # noqa: B036  # every kind of error is counted
        traceback.print_exc(file=err)
        code = 1
    os.write(writing, err.getvalue()[-1500:].encode("utf-8", "replace"))
    os._exit(code)


def tries(root: Path, count: int, seed: int, only: str = "") -> Iterator[tuple[Case, Path, Ended]]:
    """Damage `count` files in turn, and run one of the commands that read each."""
    chance = random.Random(seed)
    known = [case for case in cases() if only in case.file]
    contents = {case.file: (root / case.file).read_bytes() for case in known}
    others = list(contents.values())
    for number in range(count):
        case = known[number % len(known)]
        path = root / case.file
        path.write_bytes(damaged(contents[case.file], case.file, others, chance))
        command = tuple(word.replace("{root}", str(root)) for word in chance.choice(case.commands))
        yield case, path, ended(command)
        path.write_bytes(contents[case.file])
        for name in ("out", "out.partial"):
            shutil.rmtree(root / name, ignore_errors=True)


def main() -> None:
    """Print the counts of ends for each kind of file; keep the files with a bad end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="files with this in their name")
    parser.add_argument("--keep", type=Path, help="folder for the files that ended badly")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_good_files(root)
        counts: dict[str, Counter[str]] = {}
        for number, (case, path, end) in enumerate(
            tries(root, options.count, options.seed, options.only)
        ):
            counts.setdefault(case.file, Counter())[end.end] += 1
            if end.end not in ("right", "line"):
                print(f"--- {number} {case.file}: {end.end}\n{end.output}", flush=True)
                if options.keep is not None:
                    options.keep.mkdir(exist_ok=True)
                    shutil.copy(path, options.keep / f"{number}-{path.name}")
    print("".join([f"{'file':32}", *(f"{end:>10}" for end in ENDS)]))
    for file, counted in counts.items():
        print("".join([f"{file:32}", *(f"{counted[end]:>10}" for end in ENDS)]))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
