"""Recipe file: the options that `--recipe` names, in a YAML file or a published recipe.

app.config, mapped = read_recipe_file(["prune", "tiny", "out", "--recipe", "half.yaml"], [*app])
"""

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cyclopts.config import Dict

from minitron.errors import TargetError

PUBLISHED = Path(__file__).parent / "recipes"
_LIKE = 0.75  # similarity of a name that means another


def read_recipe_file(
    tokens: Sequence[str], commands: Sequence[str]
) -> tuple[tuple[Dict, ...], list[str]]:
    """The options of the file that --recipe names, which flags override; and the entries of its
    mappings as flags, since cyclopts reads a mapping from one place only."""
    for index, token in enumerate(tokens):
        if token == "--recipe" and index + 1 < len(tokens):
            name = tokens[index + 1]
        elif token.startswith("--recipe="):
            name = token.removeprefix("--recipe=")
        else:
            continue
        options = _options(name)
        plain = {key: value for key, value in options.items() if not isinstance(value, dict)}
        # Under each verb: at the top, cyclopts takes a key that is a verb's name for a verb.
        source = f"--recipe {name}"
        return (Dict(dict.fromkeys(commands, plain), source=source),), _flags(options, tokens)
    return (), []


def _flags(options: dict[str, Any], tokens: Sequence[str]) -> list[str]:
    """The entries of a recipe's mappings as flags, where they are not given as flags already."""
    given = {token.partition("=")[0].replace("_", "-") for token in tokens}
    return [
        f"--{key}.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for key, mapping in options.items()
        if isinstance(mapping, dict)
        for name, value in mapping.items()
        if f"--{key}.{name}".replace("_", "-") not in given
    ]


def _options(name: str) -> dict[str, Any]:
    """The options in a recipe file. Raises TargetError."""
    from minitron.files.plain_yaml import read_yaml

    published = {path.stem: path for path in PUBLISHED.glob("*.yaml")}
    path = Path(name) if Path(name).is_file() else published.get(name, Path(name))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TargetError(
            f"--recipe {name} does not exist: {_other(name, sorted(published))}"
        ) from None
    except OSError as error:
        raise TargetError(f"--recipe {name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TargetError(f"--recipe {name} is not YAML: {error}") from None
    except ValueError as error:  # a zero byte in the name
        raise TargetError(f"--recipe {name} cannot be read: {error}") from None
    options = read_yaml(text, f"--recipe {name}", TargetError)
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise TargetError(f"--recipe {name} holds {options!r:.40}: write one `key: value` a line")
    return options


def _other(name: str, published: Sequence[str]) -> str:
    """What to name instead: the published recipe with the nearest name, or any."""
    near = get_close_matches(name, published, 1, _LIKE)
    return (
        f"did you mean {near[0]}?"
        if near
        else f"name a YAML file, or one of {', '.join(published)}"
    )
