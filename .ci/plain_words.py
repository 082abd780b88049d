"""Find words that this project does not use in names, docstrings and comments of Python files.

Each word had several meanings here. CONTRIBUTING has the project's vocabulary.

    python .ci/plain_words.py minitron conversion space tests
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

WORDS = {
    "told": "say what happens: printed, named, passed, logged",
    "tell": "log, print, name, distinguish",
    "tells": "names, prints, distinguishes",
    "said": "given, stated, recorded",
    "goes": "is passed, is written, continues",
    "lies": "is, is stored",
    "lie": "are, are stored",
    "lent": "acquired",
    "road": "way, option",
    "insisting": "retry",
    "patiently": "retry",
}
# A function's name is a verb and its object, or the noun that it returns.
PARTICIPLES = """asked begun brought built called chosen computed copied counted described drawn
    dropped expected fetched filled fitted found given held kept known left made masked measured
    named narrowed opened passed planned printed ranked recorded rendered scored seen sent shown
    silenced sized spoken stored streamed taken thinned timed told tried used wished written"""
_ENGLISH = re.compile(r"[A-Za-z]+")


def main(folders: list[str]) -> int:
    """Print every use as `file:line: word`; return 1 if there is one."""
    files = sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    found = [line for path in files for line in uses(path)]
    print("\n".join(found) or f"{len(files)} files in plain words")
    return 1 if found else 0


def uses(path: Path) -> Iterator[str]:
    """The uses of these words in a file."""
    text = path.read_text(encoding="utf-8")
    for line, kind, words in texts(text):
        for word in _ENGLISH.findall(words):
            if word.lower() in WORDS:
                yield f"{path}:{line}: {word!r} in a {kind}; instead: {WORDS[word.lower()]}"
    if path.parts[0] in ("tests", "benchmarks"):  # small builders there are named for their result
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name.strip("_") in PARTICIPLES.split():
            where = f"{path}:{node.lineno}"
            yield f"{where}: {node.name} says neither what it does nor what it returns"


def texts(text: str) -> Iterator[tuple[int, str, str]]:
    """Names, comments and docstrings with their lines."""
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], "comment", token.string
        elif token.type == tokenize.NAME and before != ".":
            yield token.start[0], "name", token.string.replace("_", " ")
        before = token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            for offset, line in enumerate((docstring or "").splitlines()):
                yield node.body[0].lineno + offset, "docstring", line


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
