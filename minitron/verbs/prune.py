"""`minitron prune`: cut a model to smaller sizes and write it as a Hub folder.

prune(source="tiny", out="tiny-half", hidden_size=192, corpus="self")
"""

import logging
import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from minitron.candidates.choice import Choice, choose_target
from minitron.candidates.decision import (
    DECISION,
    Decision,
    decide,
    kept_choice,
    kept_decision,
    turns_stream,
)
from minitron.errors import TargetError, visible
from minitron.files.tensor_stream import stream_tensors
from minitron.files.unfinished import INPUTS, check_same_inputs, partial_of
from minitron.model.architecture import Architecture
from minitron.model.engines import load_notes
from minitron.model.family import AXIS_KEYS, PRUNABLE
from minitron.model.plan import PruningPlan
from minitron.model.source import Source
from minitron.model.target_sizes import check_opened, target_of
from minitron.options import flags_given
from minitron.printing import first_use, print_json, print_next, print_table
from minitron.recipe import record_of, verb
from minitron.recipes.pruning import PruneRecipe
from minitron.reconstruction.finished import reached
from minitron.reconstruction.memory import MemoryPlan, memory_of
from minitron.reconstruction.projection import check_turns
from minitron.reconstruction.reconstruct import Reconstructed, reconstruct
from minitron.records.folder_writer import (
    check_companions,
    specs_of,
    write_companions,
    write_weights,
)
from minitron.records.minitron_json import read_record
from minitron.records.model_card import write_card
from minitron.records.record_writer import inherited_from, write_record
from minitron.scores.calibration import Calibration, check_text
from minitron.scores.measuring import text_of
from minitron.sources.hub_folder import HubFolder
from minitron.sources.layer_stream import compute_dtype
from minitron.sources.loading import hub_config
from minitron.sources.opening import open_source, output_at
from minitron.sources.processes import Processes, is_first_process, shared_folder
from minitron.sources.pruned import PrunedSource, source_names
from minitron.verbs.inspect import Inspection, inspection_of
from minitron.verbs.push import check_push_to_hub, push_result

_PLACES = ("source", "out", "dry_run")
FITTED = "fitted"  # the folder of fitted tensors, until the weights are written
_NO_RESULT = ("memory_budget", "low_disk", "push_to_hub", "private")  # do not change the result

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PruningReport:
    """What a pruning makes of a model: the answer to `dry_run`."""

    source: Inspection
    pruned: Inspection
    share_of_importance_kept: dict[str, float]  # by axis
    reason: str  # why these sizes
    keeps_directions: bool = False  # of the hidden size, and no channels

    def to_json(self) -> dict[str, Any]:
        """The keys of `minitron prune --dry-run --json`."""
        return {
            "reason": self.reason,
            "source": self.source.to_json(),
            "pruned": self.pruned.to_json(),
            "share_of_importance_kept": self.share_of_importance_kept,
        }

    def rows(self) -> list[list[str]]:
        """A row a quantity: its name, before, after, the share, and the share of scores."""
        axes = {AXIS_KEYS[axis]: share for axis, share in self.share_of_importance_kept.items()}
        quantities = [AXIS_KEYS[axis] for axis in PRUNABLE]
        quantities += ["parameters", "bytes", "kv_cache_bytes_per_token"]
        rows = []
        for name in quantities:
            before, after = getattr(self.source, name), getattr(self.pruned, name)
            score = f"{100 * axes[name]:.1f} %" if name in axes else ""
            if self.keeps_directions and name == AXIS_KEYS["hidden"] and after < before:
                score = "by directions"  # the score ranks channels, of which none is kept
            rows.append([name, f"{before:,}", f"{after:,}", f"{100 * after / before:.1f} %", score])
        return rows


@verb(PruneRecipe)
def prune(recipe: PruneRecipe) -> HubFolder | PruningReport:
    """Cut a model to smaller sizes by importance and write it as a Hub-ready folder.

    Width (hidden, ffn, heads) and depth in one pass; sizes not given stay. Weights are streamed:
    some megabytes are held, never a tensor; to reconstruct, two layers of both models and the
    sums of one linear; the same call continues an interrupted reconstruction, and processes
    that torchrun launched share its text. Returns the folder; with `dry_run` what would be in it.
    Raises a MinitronError, with nothing written, for a source that cannot be read, sizes that are
    no cut of it or that its family refuses, missing text, an `out` that exists, or a destination
    that the Hub refuses; where only the push fails, `out` is there and the error says so. Source:
    arXiv 2407.14679, section 2.
    """
    out = output_at(recipe.out)
    if not recipe.dry_run:
        check_push_to_hub(recipe.push_to_hub, private=recipe.private)
    source = open_source(recipe.source, low_disk=recipe.low_disk)
    inherited = inherited_from(source)
    check_companions(source, source.config)
    choice = _choose_sizes(source, recipe)
    target = choice.target
    config = source.config_at(target)
    hub_config(config)
    check_text(recipe)
    source.check_weights()  # refused, if incomplete, before anything is measured
    text = _text_to_fit(source, recipe)
    memory = None if text is None else _memory(source, target, text, recipe)
    for note in load_notes(config):
        logger.warning("%s", note)
    if recipe.dry_run:
        turns = turns_stream(source, choice, recipe, text)
        return _report(source, choice, decide(source, choice, recipe, text), turns=turns)
    begun = {key: value for key, value in asdict(recipe).items() if key not in _NO_RESULT}
    with shared_folder(out, begun, resumable=memory is not None, reached=_reached) as folder:
        if text is not None and is_first_process():
            digests = {"model": source.digest, "corpus": text.corpus.digest}
            check_same_inputs(folder, out, **digests)
        decision = kept_decision(folder, source, choice, recipe, text)
        made = Reconstructed(PrunedSource(source, decision.plan), None)
        if text is not None and memory is not None:
            text = replace(text, model=None)  # which sampled it, and is needed no longer
            made = _reconstruct(source, decision.plan, text, recipe, folder, memory)
        if is_first_process():
            write_model(folder, source, decision.plan, made)
            results = {
                "importance": decision.importance,
                "share_of_importance_kept": decision.shares,
                "kept": decision.plan.to_json(),
                **({} if choice.record is None else {"search": choice.record}),
                **({} if made.record is None else {"reconstruction": made.record}),
            }
            sizes = made.source.architecture
            record = record_of(recipe)
            write_record(
                folder, "prune", record, source, target=sizes, inherited=inherited, **results
            )
            write_card(folder)
            shutil.rmtree(folder / FITTED, ignore_errors=True)
            (folder / INPUTS).unlink(missing_ok=True)
            (folder / DECISION).unlink()
    if recipe.push_to_hub is not None and is_first_process():
        push_result(out, recipe.push_to_hub, private=recipe.private)
    return HubFolder.at(out)


def command(recipe: PruneRecipe, *, as_json: bool) -> None:
    """What the command line runs and prints."""
    made = prune(**vars(recipe))
    if not is_first_process():
        return
    inspection = made.pruned if isinstance(made, PruningReport) else inspection_of(made)
    if as_json:
        print_json(made.to_json() if isinstance(made, PruningReport) else inspection.to_json())
    elif isinstance(made, PruningReport):
        print_table(["", "before", "after", "kept", "score kept"], made.rows())
        print(f"\n{visible(made.reason)}\n{recipe.out}: not written (--dry-run)")
        options = [each.name for each in fields(recipe) if each.name not in _PLACES]
        words = ["minitron", "prune", recipe.source, recipe.out]
        print_next([*words, *flags_given(recipe, options)])
    else:
        print(f"{recipe.out}: {inspection.parameters:,} parameters")
        print_next(_next_command(recipe, made))


def _next_command(recipe: PruneRecipe, made: HubFolder) -> list[str]:
    """The command that trains the result on its source's predictions, on the same text.

    A copy, of which nothing is cut, is used as it is.
    """
    if not read_record(Path(recipe.out))["kept"]:
        return first_use(recipe.out, has_tokenizer=bool(made.companions.tokenizer_names))
    corpus = recipe.corpus if recipe.corpus not in (None, "random") else "self"
    words = ["minitron", "distill", recipe.out, f"{Path(recipe.out)}-distilled"]
    words += ["--teacher", recipe.source, "--corpus", str(corpus)]
    return words + flags_given(recipe, ["seq_len"])


def _text_to_fit(source: Source, recipe: PruneRecipe) -> Calibration | None:
    """The calibration text where the smaller model is fitted on it, else None."""
    if not recipe.is_reconstructed:
        return None
    check_turns(recipe.hidden, source.architecture)
    return text_of(source, recipe)


def _report(source: Source, choice: Choice, decision: Decision, *, turns: bool) -> PruningReport:
    """What would be written; `turns`: of the hidden size directions, and no channels."""
    pruned = PrunedSource(source, decision.plan)
    both = inspection_of(source), inspection_of(pruned)
    return PruningReport(*both, dict(decision.shares), choice.reason, keeps_directions=turns)


def _choose_sizes(source: Source, recipe: PruneRecipe) -> Choice:
    """The sizes that the recipe names, or those that its budget leads to."""
    named = [AXIS_KEYS[axis] for axis in PRUNABLE if getattr(recipe, AXIS_KEYS[axis]) is not None]
    if recipe.has_budget and Processes.of_run().count > 1:
        raise TargetError("a budget is searched by one process: name sizes, or do not use torchrun")
    if not recipe.has_budget:
        if not named:
            raise TargetError(
                "nothing to cut: name sizes, such as --hidden-size or --num-hidden-layers, or a "
                "budget, --ratio, --params, --memory or --latency"
            )
        target = target_architecture(source.architecture, recipe)
        if target == source.architecture:
            logger.warning("nothing is cut: %s has these sizes already", source.name)
        if recipe.compatible:
            check_opened(target, source.architecture)
        return Choice(target, reason="sizes as named")
    if named:
        flag = named[0].replace("_", "-")
        raise TargetError(f"--{flag} and a budget are both given: name sizes or a budget")
    folder = partial_of(output_at(recipe.out))
    kept = None if recipe.dry_run else kept_choice(folder, source, recipe)
    choice = kept or choose_target(source, recipe)
    if not recipe.dry_run:  # its report states the reason
        logger.info("%s", choice.reason)
    return choice


def target_architecture(source: Architecture, recipe: PruneRecipe) -> Architecture:
    """The sizes that `recipe` asks for; those it does not name stay the source's.

    Raises ArchitectureError or TargetError for sizes that are no cut of the source.
    """
    named = {AXIS_KEYS[axis]: getattr(recipe, AXIS_KEYS[axis]) for axis in PRUNABLE}
    return target_of(source, {size: value for size, value in named.items() if value is not None})


def _reached(unfinished: Path) -> str | None:
    """Where a reconstruction continues; None where it is not decided yet what is kept."""
    return reached(unfinished / FITTED) if (unfinished / DECISION).exists() else None


def write_model(
    folder: Path,
    source: Source,
    plan: PruningPlan,
    made: Reconstructed,
    *,
    max_shard_size: str | None = None,
) -> None:
    """Write weights, config and tokenizer of the model."""
    tensors, names = made.source.weights, source_names(plan)
    pieces = stream_tensors(tensors, source.name, source_names=names)
    write_weights(folder, specs_of(tensors), pieces, max_shard_size=max_shard_size)
    write_companions(folder, source, made.source.config)


def _memory(
    source: Source, target: Architecture, text: Calibration, recipe: PruneRecipe
) -> MemoryPlan | None:
    """How the reconstruction fits into memory, with the batches of an interrupted one.

    None where the text is too short for one, and `recipe` does not ask for it by name.
    """
    if recipe.reconstruct is None and len(text.sequences) < 2:
        logger.warning("not reconstructed: one sequence of text, and one is held out (--samples)")
        return None
    processes = Processes.of_run()
    return memory_of(
        source,
        target,
        text.sequences,
        hidden=recipe.hidden,
        dtype=compute_dtype(source.tensors, processes.device, recipe.compute_dtype),
        processes=processes,
        memory_budget=recipe.memory_budget,
        folder=partial_of(output_at(recipe.out)) / FITTED,
    )


def fit_to_source(
    source: Source, plan: PruningPlan, text: Calibration, recipe: PruneRecipe, folder: Path
) -> Reconstructed:
    """The pruned model fitted to its source; its fitted tensors are in FITTED of `folder`."""
    memory = _memory(source, plan.target, text, recipe)
    assert memory is not None, "recipe.reconstruct is auto"
    return _reconstruct(source, plan, text, recipe, folder, memory)


def _reconstruct(
    source: Source,
    plan: PruningPlan,
    text: Calibration,
    recipe: PruneRecipe,
    folder: Path,
    memory: MemoryPlan,
) -> Reconstructed:
    """The pruned model fitted to its source; its fitted tensors are in `folder`."""
    processes = Processes.of_run()
    made = reconstruct(
        source,
        plan,
        text.sequences,
        folder / FITTED,
        hidden=recipe.hidden,
        dtype=compute_dtype(source.tensors, processes.device, recipe.compute_dtype),
        device=processes.device,
        memory=memory,
        processes=processes,
    )
    corpus = {"corpus": text.corpus.name, "corpus_digest": text.corpus.digest}
    return replace(made, record={**corpus, **(made.record or {})})
