"""`minitron remake`: build a folder's weights again, byte for byte, from its minitron.json.

Nothing is measured again: the kept indices are recorded, so that no text is needed. Refuses a
source that is not the recorded one, and weights that differ from the recorded ones. Does not train.

    remake("tiny-half", "tiny-half-again")
"""

import filecmp
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from minitron.errors import SourceError, TargetError
from minitron.files.tensor_stream import stream_tensors
from minitron.files.unfinished import unfinished_folder
from minitron.model.plan import PruningPlan
from minitron.model.source import Source
from minitron.printing import first_use, print_next
from minitron.recipe import DType, verb
from minitron.recipes.publishing import RemakeRecipe
from minitron.records.folder_writer import specs_of, write_companions, write_json, write_weights
from minitron.records.minitron_json import (
    FILE,
    TRAINED,
    RemakeRecord,
    check_record,
    read_record,
    record_before_training,
)
from minitron.records.model_card import write_card
from minitron.records.record_writer import outlines_of
from minitron.sources.hub_folder import HubFolder
from minitron.sources.opening import open_source, output_at, zoo
from minitron.sources.pruned import PrunedSource, source_names
from minitron.verbs.convert import convert


@verb(RemakeRecipe)
def remake(recipe: RemakeRecipe) -> HubFolder:
    """Build a pruned or converted folder again: the same safetensors, byte for byte.

    `folder` is a folder, or a Hub id of which no weights are fetched. Its minitron.json is enough:
    the kept indices are used, nothing is measured, and where the weights are beside it they are
    compared whole. Returns the folder. Raises SourceError, with nothing written, where
    minitron.json is missing, damaged or of a newer minitron, and where the source is gone or
    another model now; TargetError for what training made.
    """
    out = output_at(recipe.out)
    own_record, original = _read_folder(recipe.folder)
    record = _record_to_remake(own_record, recipe)
    recorded = RemakeRecord.of(record, f"{recipe.folder}/{FILE}")
    name = recipe.source or recorded.source
    plan = _recorded_plan(recorded, name, recipe)
    check_record(record, recorded.file)
    _check_not_fitted(record, recipe.folder)
    with unfinished_folder(out, asdict(recipe)) as folder:
        if plan is None:
            _convert_again(recorded, name, folder, low_disk=recipe.low_disk)
        else:
            source = open_source(name, low_disk=recipe.low_disk)
            _prune_again(recorded, source, plan, folder)
        _check_recorded(recorded, name, folder)
        if original is not None and record is own_record:
            _check_beside(name, folder, original)
        write_json(folder / FILE, record)
        write_card(folder)
    return HubFolder.at(out)


def command(recipe: RemakeRecipe) -> None:
    """What the command line runs and prints."""
    folder = remake(**vars(recipe))
    print(f"{recipe.out}: {len(folder.files_of_tensors):,} tensors, the same bytes")
    print_next(first_use(recipe.out, has_tokenizer=bool(folder.companions.tokenizer_names)))


def _read_folder(folder: str) -> tuple[dict[str, Any], Path | None]:
    """The record of a folder, and the folder itself where it is on this machine."""
    path = Path(folder)
    if not path.exists():
        path = zoo().get(folder, path)
    if path.exists():
        return read_record(path, folder), path
    file = open_source(folder, reads_weights=False).companions.file(FILE)
    if file is None:
        raise SourceError(f"{folder} has no {FILE}: it was not made here")
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


def _check_not_fitted(record: Mapping[str, Any], folder: str) -> None:
    """Refuse fitted weights, which depend on the text and, in rounding, on the processor."""
    done = record.get("reconstruction")
    if isinstance(done, dict) and done.get("used"):
        raise TargetError(
            f"{folder} was reconstructed, and its weights depend on calibration text that "
            f"{FILE} does not hold: repeat the minitron prune command in its README.md"
        )


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


def _prune_again(recorded: RemakeRecord, source: Source, plan: PruningPlan, folder: Path) -> None:
    """Write what `prune` wrote, by the recorded plan."""
    pruned = PrunedSource(source, plan)
    pieces = stream_tensors(pruned.tensors, source.name, source_names=source_names(plan))
    sizes = specs_of(pruned.tensors)
    write_weights(folder, sizes, pieces, max_shard_size=recorded.max_shard_size)
    write_companions(folder, source, pruned.config)


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
