"""The model card: README.md of a folder, from its minitron.json and config.

Knows the Hub's metadata and the order of a card: what was removed, how it was trained, its scores,
how to load it, its limits, how to make it again. Keeps what people wrote: a README.md that was
changed since minitron wrote it is replaced only with `overwrite`.

    write_card(Path("tiny-half"))
"""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minitron.errors import SourceError
from minitron.files.atomic_file import replace_file
from minitron.files.checked_json import Unreadable, check_kind, parse_object
from minitron.model.architecture import Architecture
from minitron.model.engines import engine_notes
from minitron.records.card_page import Card, Page, read_page, render_page, sizes_table
from minitron.records.card_texts import (
    DISTILLED,
    FITTED_TEXT,
    PRUNED,
    RECIPES,
    again_text,
    commands_of,
    escape_markdown,
    is_fitted,
    keeps_directions,
    kept_text,
    limit_texts,
    result_tables,
    size_before,
    summary_text,
)
from minitron.records.kept_picture import KEPT_PICTURE, draw_kept
from minitron.records.minitron_json import (
    FILE,
    INHERITED,
    Record,
    check_record,
    history_of,
    read_record,
)
from minitron.records.reconstruction_picture import RECONSTRUCTION_PICTURE, draw_reconstruction
from minitron.records.task_scores import from_record, model_index
from minitron.records.training_texts import training_texts
from minitron.sources.hub_folder import HubFolder

README = "README.md"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_DATASET = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(:[^/]*)?")
_FILES = (".txt", ".jsonl", ".parquet", ".gz", ".npy")
_LOSS_PICTURE, _CURVE = "loss.png", "training.jsonl"

logger = logging.getLogger(__name__)


def write_card(folder: Path, *, overwrite: bool = False) -> None:
    """Write README.md for a folder that holds a minitron.json, and draw what a pruning did.

    License and language come from the source's card, if it has one. A README.md that was written or
    changed by hand is kept, with a warning; so is metadata that somebody added.
    """
    record = checked_record(folder)
    path = folder / README
    metadata = _metadata(history_of(record))
    if path.exists() and not overwrite:
        page = read_page(path)
        if not page.text_is_unchanged:
            logger.warning(
                "%s was changed by hand and is kept: minitron card --overwrite replaces it", path
            )
            return
        metadata = _merge_metadata(metadata, page)
    _draw_pruning(folder, history_of(record))
    if "benchmarks" in record:
        scores = from_record(record["benchmarks"])
        metadata["model-index"] = model_index(scores, _name_of(folder))
    page_text = render_page(_card(folder, record), metadata)
    replace_file(path, page_text.encode())


def _draw_pruning(folder: Path, history: Sequence[Record]) -> None:
    """Draw what the last pruning kept and fitted; a card without a picture is better than none."""
    prunings = [step for step in history if step.get("kept")]
    if not prunings:
        return
    last = prunings[-1]
    kept = dict(last["kept"])
    if keeps_directions(last):
        kept.pop("hidden", None)
    try:
        drawn = draw_kept(folder / KEPT_PICTURE, kept, last["source"], last["target"])
    except SourceError as error:
        logger.warning("no picture of what was kept: %s", error)
        return
    if not drawn:
        logger.info("no picture of what was kept: pip install 'minitron[plots]'")
    elif is_fitted(last):
        architecture = HubFolder.at(folder).architecture
        draw_reconstruction(folder / RECONSTRUCTION_PICTURE, last["reconstruction"], architecture)


def usage(names_source: str, prompt: str = "It was the best of times,") -> str:
    """Python code that loads a base model and generates; `names_source` is its line `source =`."""
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"{names_source}\n"
        "tokenizer = AutoTokenizer.from_pretrained(source)\n"
        'model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")\n'
        f'ids = tokenizer("{prompt}", return_tensors="pt").input_ids\n'
        "print(tokenizer.decode(model.generate(ids, max_new_tokens=40)[0]))"
    )


def memory_fact(architecture: Architecture) -> str:
    """The memory that a model needs in bfloat16."""
    gigabytes = 2 * architecture.parameters / 1e9
    cache = 2 * architecture.kv_cache_elements_per_token
    size = f"{gigabytes:.2f} GB" if gigabytes >= 0.1 else f"{1000 * gigabytes:.1f} MB"
    return f"In bfloat16: {size} of weights, {cache:,} bytes of KV cache a token."


def _card(folder: Path, record: Record) -> Card:
    name, steps = _name_of(folder), history_of(record)
    history = history_of(escape_markdown(record))
    model = HubFolder.at(folder)
    recipe = {"command": record["command"], "recipe": record["recipe"]}
    return Card(
        name=name,
        summary=summary_text(history),
        facts=(memory_fact(model.architecture),),
        sizes=sizes_table(name, record["target"], size_before(history)),
        kept_picture=_name_if_exists(folder, KEPT_PICTURE),
        kept_note=kept_text(history),
        training=training_texts(history, _losses(folder)),
        reconstruction_picture=_name_if_exists(folder, RECONSTRUCTION_PICTURE),
        reconstruction_note=FITTED_TEXT,
        loss_picture=_name_if_exists(folder, _LOSS_PICTURE),
        results=result_tables(history, name),
        code=usage('source = "."  # this folder, or its id on the Hub'),
        limits=limit_texts(history, name),
        engines=tuple(engine_notes(model.config)),
        again=again_text(steps, name),
        commands=commands_of(steps, name),
        record=json.dumps(recipe, indent=2),
    )


def _name_of(folder: Path) -> str:
    return folder.resolve().name.removesuffix(".partial")


def checked_record(folder: Path) -> dict[str, Any]:
    """The folder's record, checked for a card. Raises SourceError, which names what is missing."""
    record = read_record(folder)
    if not (folder / "config.json").is_file():
        raise SourceError(f"{folder} has no config.json: it is no model")
    check_record(record, str(folder / FILE))
    for step in history_of(record):
        if step["command"] not in RECIPES:
            raise SourceError(
                f"{folder / FILE} names the command {step['command']!r}: make the folder again"
            )
    return record


def _name_if_exists(folder: Path, name: str) -> str | None:
    return name if (folder / name).exists() else None


def _losses(folder: Path) -> list[dict[str, float]]:
    path = folder / _CURVE
    if not path.exists():
        return []
    try:
        points = [parse_object(line) for line in path.read_bytes().splitlines()]
    except (OSError, Unreadable) as error:
        raise SourceError(f"{path} is damaged ({error}): mend or remove it") from error
    for point in points:
        check_kind(point, {"eval_loss?": float}, str(path), SourceError, "mend or remove it")
    return points


def _metadata(history: Sequence[Record]) -> dict[str, Any]:
    last = history[-1]
    verbs = {step["command"] for step in history}
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [
            "minitron",
            *(["pruning"] if verbs & set(PRUNED) else []),
            *(["distillation"] if verbs & set(DISTILLED) else []),
        ],
    }
    hubs = [step["source"] for step in reversed(history) if step["source"].get("revision")]
    # The source of a .nemo in a repository is that repository.
    repos = [re.split("[:@]", source["name"])[0] for source in hubs]
    bases = [repo for repo in repos if _HUB_ID.fullmatch(repo)]
    if bases:
        metadata |= {"base_model": bases[0], "base_model_relation": "finetune"}
    corpora = [step["recipe"].get("corpus") for step in history]
    if datasets := list(dict.fromkeys(name for c in corpora if (name := _dataset(c)) is not None)):
        metadata["datasets"] = datasets
    inherited = last["source"].get("metadata", {})
    return {**metadata, **{key: inherited[key] for key in INHERITED if key in inherited}}


def _dataset(corpus: str | None) -> str | None:
    """The Hub id of a corpus; None for files and other texts."""
    if corpus is None or corpus.endswith(_FILES):
        return None
    matched = _DATASET.fullmatch(corpus)
    return matched[1] if matched is not None and not os.path.exists(corpus) else None


def _merge_metadata(metadata: Mapping[str, Any], page: Page) -> dict[str, Any]:
    """The new metadata; where somebody changed the page's, those take precedence."""
    if page.metadata_is_unchanged:
        return dict(metadata)
    return {**metadata, **page.metadata}
