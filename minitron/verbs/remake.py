"""`minitron remake`: build a folder's weights again, byte for byte, from its minitron.json.

Nothing is measured again: the kept indices are recorded, so that no text is needed. Refuses a
source that is not the recorded one, and weights that differ from the recorded ones. Does not train.
Weights that were fitted are fitted again to the same text: their bytes may depend on the processor,
so they are compared with the recorded ones, and the largest difference is stated.

    remake("half", "half-again")
"""

import filecmp
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from minitron.errors import CorpusError, SourceError, TargetError
from minitron.files.unfinished import unfinished_folder
from minitron.model.plan import PruningPlan
from minitron.model.source import Source
from minitron.printing import first_use, print_next
from minitron.recipe import DType, verb
from minitron.recipes.pruning import Hidden, PruneRecipe
from minitron.recipes.publishing import RemakeRecipe
from minitron.reconstruction.reconstruct import Reconstructed
from minitron.records.folder_writer import write_json
from minitron.records.minitron_json import (
    FILE,
    TRAINED,
    RemakeRecord,
    check_record,
    no_record,
    read_record,
    record_before_training,
)
from minitron.records.model_card import write_card
from minitron.records.record_writer import (
    hold_every_byte,
    name_texts,
    outlines_of,
    versions,
)
from minitron.scores.calibration import Calibration
from minitron.scores.measuring import text_of
from minitron.sources.difference import weight_difference
from minitron.sources.hub_folder import HubFolder
from minitron.sources.opening import open_source, output_at, zoo
from minitron.sources.pruned import PrunedSource
from minitron.verbs.convert import convert
from minitron.verbs.prune import FITTED, fit_to_source, write_model

# The options of a pruning that decide its text, and how it is fitted to that.
_OF_A_FIT = ("samples", "seq_len", "seed", "compute_dtype", "memory_budget")

logger = logging.getLogger(__name__)


@verb(RemakeRecipe)
def remake(recipe: RemakeRecipe) -> HubFolder:
    """Build a pruned or converted folder again: the same safetensors, byte for byte.

    `folder` is a folder, or a Hub id of which no weights are fetched. Its minitron.json is enough:
    the kept indices are used, nothing is measured, and where the weights are beside it they are
    compared whole. Weights that were fitted are fitted again to the same text; how far they are
    from the recorded ones is logged. Returns the folder. Raises SourceError, with nothing written,
    where minitron.json is missing, damaged or of a newer minitron, and where the source is gone or
    another model now; CorpusError where the text is; TargetError for what training made.
    """
    folder, comparison = _remake(recipe)
    logger.info("%s: %s", recipe.out, comparison)
    return folder


def command(recipe: RemakeRecipe) -> None:
    """What the command line runs and prints."""
    folder, comparison = _remake(recipe)
    print(f"{recipe.out}: {len(folder.files_of_tensors):,} tensors, {comparison}")
    print_next(first_use(recipe.out, has_tokenizer=bool(folder.companions.tokenizer_names)))


def _remake(recipe: RemakeRecipe) -> tuple[HubFolder, str]:
    """The folder, and how its weights compare with the recorded ones."""
    out = output_at(recipe.out)
    own_record, original = _read_folder(recipe.folder)
    record = _record_to_remake(own_record, recipe)
    recorded = RemakeRecord.of(record, f"{recipe.folder}/{FILE}")
    name = recipe.source or recorded.source
    plan = _recorded_plan(recorded, name, recipe)
    check_record(record, recorded.file)
    beside = original if record is own_record else None
    fit = _recorded_fit(record, recorded, name, recipe)
    if fit is not None and beside is not None:
        _check_unchanged(recorded, beside)
    comparison = "the same bytes"
    with unfinished_folder(out, asdict(recipe)) as folder:
        if plan is None:
            _convert_again(recorded, name, folder, low_disk=recipe.low_disk)
        else:
            source = open_source(name, low_disk=recipe.low_disk)
            made = Reconstructed(PrunedSource(source, plan), None)
            if fit is not None:
                pruning, text = fit
                made = fit_to_source(source, plan, text, pruning, folder)
            write_model(folder, source, plan, made, max_shard_size=recorded.max_shard_size)
            shutil.rmtree(folder / FITTED, ignore_errors=True)
        if fit is None:
            _check_recorded(recorded, name, folder)
            if beside is not None:
                _check_beside(name, folder, beside)
        else:
            is_on_hub = original is None and record is own_record
            theirs = open_source(recipe.folder) if is_on_hub else None
            comparison = _compared(recorded, folder, beside, theirs)
            record = {**record, **_fitted_again(record, folder, made.record)}
        write_json(folder / FILE, record)
        write_card(folder)
    return HubFolder.at(out), comparison


def _read_folder(folder: str) -> tuple[dict[str, Any], Path | None]:
    """The record of a folder, and the folder itself where it is on this machine."""
    path = Path(folder)
    if not path.exists():
        path = zoo().get(folder, path)
    if path.exists():
        return read_record(path, folder), path
    file = open_source(folder, reads_weights=False).companions.file(FILE)
    if file is None:
        raise no_record(folder)
    return read_record(file.parent, folder), None


def _record_to_remake(record: dict[str, Any], recipe: RemakeRecipe) -> dict[str, Any]:
    """The record of the model to build. Raises TargetError for what training made."""
    command, initial = record.get("command"), record_before_training(record)
    if command not in TRAINED:
        if recipe.before_training:
            raise TargetError(f"{recipe.folder} was not trained: do without --before-training")
        return record
    if recipe.before_training and initial is not None:
        return initial
    reason = f"{recipe.folder} was made by minitron {command}: trained weights cannot be remade "
    reason += "without training"
    if command == "quickstart":
        options = record.get("recipe")
        seed = options.get("seed", 0) if isinstance(options, dict) else 0
        again = f"minitron quickstart {recipe.out} --seed {seed}"
        raise TargetError(f"{reason}; {again} trains them again")
    if initial is None:
        raise TargetError(f"{reason}; its minitron.json has the recipe to do that again")
    raise TargetError(f"{reason}; --before-training remakes the model that it began with")


def _recorded_fit(
    record: Mapping[str, Any], recorded: RemakeRecord, name: str, recipe: RemakeRecipe
) -> tuple[PruneRecipe, Calibration] | None:
    """How the recorded weights were fitted, and to which text; None where they were not.

    Raises CorpusError where the text is not the recorded one or cannot be read.
    """
    done = record.get("reconstruction", {})
    if recorded.command != "prune" or not done.get("used"):
        if recipe.corpus is not None:
            raise TargetError(f"--corpus has no effect: {recipe.folder} was not fitted to a text")
        return None
    corpus = recipe.corpus or done["corpus"]
    pruning = _recipe_of_fit(recorded, done, name, recipe.out, corpus)
    text = f"the text that {recipe.folder} was fitted to"
    try:
        found = text_of(open_source(name, low_disk=recipe.low_disk), pruning)
    except CorpusError as error:
        raise CorpusError(f"{text} cannot be read: {error} (--corpus names it)") from error
    if found.corpus.digest != done["corpus_digest"]:
        raise CorpusError(
            f"{corpus} is not {text}: its digest is another than in {recorded.file}; name that "
            "one with --corpus"
        )
    # It was float32 before it was recorded.
    dtype = done.get("dtype") or pruning.compute_dtype or "float32"
    # The model only sampled the text.
    return replace(pruning, compute_dtype=dtype), replace(found, model=None)


def _recipe_of_fit(
    recorded: RemakeRecord, done: Mapping[str, Any], name: str, out: str, corpus: str
) -> PruneRecipe:
    """The options that decide the text, and how weights are fitted to it. Raises SourceError."""
    again = {key: recorded.recipe[key] for key in _OF_A_FIT if key in recorded.recipe}
    dtypes = (None, *get_args(DType))
    choices = {"hidden": get_args(Hidden), "compute_dtype": dtypes, "dtype": dtypes}
    hidden = done["hidden"]
    for key, value in {"hidden": hidden, "dtype": done.get("dtype"), **again}.items():
        if key in choices and value not in choices[key]:
            raise SourceError(f"{recorded.file} is damaged: {key} is {value!r:.80}")
    try:
        return PruneRecipe(name, out, corpus=corpus, reconstruct="auto", hidden=hidden, **again)
    except TargetError as error:
        raise SourceError(f"{recorded.file} is damaged: {error}") from error


def _open_recorded(recorded: RemakeRecord, name: str, recipe: RemakeRecipe) -> Source:
    try:
        padded = recorded.recipe.get("keep_vocab_padding") is True
        return open_source(name, keep_vocab_padding=padded, low_disk=recipe.low_disk)
    except SourceError as error:
        if recipe.source is not None:
            raise
        raise SourceError(
            f"the source of {recorded.file} cannot be opened: {error} (if it has moved, --source "
            "names it)"
        ) from error


def _recorded_plan(recorded: RemakeRecord, name: str, recipe: RemakeRecipe) -> PruningPlan | None:
    """What is kept of the source, None for all. Raises SourceError for another model."""
    source = _open_recorded(recorded, name, recipe)
    if source.digest != recorded.digest:
        raise SourceError(
            f"{name} is not the model that {recorded.file} was written for: its digest is another; "
            "name that one with --source"
        )
    if recorded.command == "convert":
        return None
    return recorded.plan_for(source.architecture)


def _convert_again(recorded: RemakeRecord, name: str, folder: Path, *, low_disk: bool) -> None:
    """Write what `convert` wrote, by the recorded options."""
    recipe, work = recorded.recipe, folder / "again"
    dtype = recipe.get("dtype")
    if dtype not in (None, *get_args(DType)):
        raise SourceError(f"{recorded.file} has recipe.dtype {dtype!r}: it is damaged")
    convert(
        name,
        str(work),
        dtype=dtype,
        max_shard_size=recorded.max_shard_size,
        keep_vocab_padding=recipe.get("keep_vocab_padding") is True,
        check=recipe.get("check") is not False,
        low_disk=low_disk,
    )
    (work / "README.md").unlink()  # its title is the folder's name
    for path in work.iterdir():
        path.rename(folder / path.name)
    work.rmdir()


def _check_recorded(recorded: RemakeRecord, name: str, folder: Path) -> None:
    """Refuse weights that differ from the recorded ones."""
    made = outlines_of(folder)
    for file in sorted({*made, *recorded.files}):
        if made.get(file) != recorded.files.get(file):
            raise SourceError(
                f"{file} does not come out as {recorded.file} records: {name} has changed since"
            )


def _check_beside(name: str, folder: Path, original: Path) -> None:
    """Refuse weights that differ from those beside the record, where there are any."""
    for made in sorted(folder.glob("*.safetensors")):
        beside = original / made.name
        if beside.is_file() and not filecmp.cmp(made, beside, shallow=False):
            raise SourceError(
                f"{made.name} does not come out as {beside}: either {name} or that file has "
                f"changed since; to go by {FILE} alone, copy it into a folder of its own and "
                "remake that"
            )


def _check_unchanged(recorded: RemakeRecord, beside: Path) -> None:
    """Refuse weights beside a record that are not the recorded ones: nothing compares with them."""
    there = outlines_of(beside)
    if there and there != recorded.files:
        raise SourceError(
            f"the weights in {beside} are not those that {recorded.file} records: to go by "
            f"{FILE} alone, copy it into a folder of its own and remake that"
        )


def _compared(
    recorded: RemakeRecord, folder: Path, beside: Path | None, on_hub: Source | None
) -> str:
    """How weights that were fitted again compare with the recorded ones, in words."""
    made = HubFolder.at(folder)
    if beside is not None and any(beside.glob("*.safetensors")):
        names = sorted(outlines_of(folder))
        if all(_has_the_same_bytes(folder / name, beside / name) for name in names):
            return "the same bytes"
        return f"other bytes: {weight_difference(made, HubFolder.at(beside))}"
    files = outlines_of(folder)
    if files == recorded.files:
        checked = "" if hold_every_byte(files) else ", as far as minitron.json has samples of them"
        return f"the same bytes{checked}"
    if on_hub is not None:
        return f"other bytes: {weight_difference(made, on_hub)}"
    return "other bytes than recorded; the recorded weights are not there to compare with"


def _has_the_same_bytes(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def _fitted_again(
    record: Mapping[str, Any], folder: Path, done: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The entries of the record that hold what this fit made."""
    files = outlines_of(folder)
    if files == record["weights"]["files"]:
        return {}
    weights = {**record["weights"], "files": files}
    return {"weights": weights, "versions": versions(), **name_texts({"reconstruction": done})}
