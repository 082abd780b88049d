"""Searching: the best sizes within a budget, among all that one importance can cut.

The steps in order: the sizes within the budget, importance measured once, the loss of each
candidate on held-out text, reconstructed or as it is cut, finalists timed whole and retrained.
Source: arXiv 2407.14679, section 2.3.

    search("tiny", ratio=0.5, corpus="self", samples=64).best.architecture
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory

from minitron.candidates.comparison import (
    CANDIDATES,
    IMPORTANCE,
    RETRAINING,
    Comparison,
    reached,
)
from minitron.candidates.fit import FITTED
from minitron.candidates.report import SearchReport, can_draw, draw_pareto
from minitron.candidates.shortlist import TABLE
from minitron.candidates.texts import TEXTS
from minitron.errors import CorpusError, visible
from minitron.files.unfinished import INPUTS, unfinished_folder
from minitron.model.family import AXIS_KEYS, PRUNABLE
from minitron.options import flag_of, flags_given
from minitron.printing import print_json, print_next, print_table
from minitron.recipe import verb
from minitron.recipes.importance import CalibrationRecipe
from minitron.recipes.pruning import SearchRecipe
from minitron.records.folder_writer import write_json
from minitron.scores.measuring import BY_ACTIVATIONS
from minitron.sources.opening import open_source, output_at
from minitron.verbs.distill import distill

_WORK = (
    *TEXTS,
    TABLE,
    CANDIDATES,
    FITTED,
    RETRAINING,
    INPUTS,
)  # what only an interrupted search needs

logger = logging.getLogger(__name__)


@verb(SearchRecipe)
def search(recipe: SearchRecipe) -> SearchReport:
    """Find the sizes within a budget whose pruned model predicts held-out text best.

    Enumerates depths, heads and widths within 5 % of the budget, cuts each by one importance, and
    ranks them by loss, reconstructed where `prune` would do that, else as they are cut; then the
    `top` ones by loss after `retrain_steps`.
    Returns the report; with `out`, a folder of search.json, search.md, importance.safetensors and,
    where matplotlib is installed, pareto.png. Interrupted, it resumes when the same call is made
    again. Raises a MinitronError for a budget that is wrong or that nothing meets (it names
    the nearest sizes), text that is missing, a device that is not there.
    """
    if recipe.retrain_steps and recipe.corpus is None and recipe.retrain_corpus is None:
        raise CorpusError("retraining needs text: name --retrain-corpus")
    out = None if recipe.out is None else output_at(recipe.out)
    source = open_source(recipe.source)
    with _work_folder(out, recipe) as folder:
        comparison = Comparison.prepare(source, recipe, folder)
        candidates = comparison.measure_losses()
        candidates = comparison.time_best(candidates, recipe.top)
        if recipe.retrain_steps:
            candidates = comparison.retrain_best(
                candidates, recipe, lambda retraining: distill(**vars(retraining))
            )
        report = comparison.report(candidates)
        if out is not None:
            _write(report, folder)
    return report


def command(recipe: SearchRecipe, *, as_json: bool) -> None:
    """What the command line runs and prints."""
    report = search(**vars(recipe))
    if as_json:
        print_json(report.to_json())
        return
    print_table(report.columns(), report.rows())
    print("\n" + "\n".join(map(visible, [*report.notes(), f"{report.reason()}."])))
    if recipe.out is not None:
        print(f"\nWritten: {recipe.out}")
    print_next(_prune_command(report, recipe))


def _prune_command(report: SearchReport, recipe: SearchRecipe) -> list[str]:
    """The command that prunes to the best sizes, by the importance that the search measured."""
    best = report.best.architecture
    source = report.best.plan.source
    words = ["minitron", "prune", recipe.source, f"{Path(recipe.out or 'best').name}-pruned"]
    for axis in PRUNABLE:
        if best.size(axis) != source.size(axis):
            words += [flag_of(AXIS_KEYS[axis]), str(best.size(axis))]
    names = ["contiguous_layers", "head_residual", "reconstruct", "hidden"]
    if recipe.out is not None:
        words += ["--importance", str(Path(recipe.out) / IMPORTANCE)]
        if recipe.is_reconstructed:
            names += ["corpus", "samples", "seq_len", "compute_dtype"]
    elif recipe.importance is not None:
        names.append("importance")
    elif recipe.scores in BY_ACTIVATIONS:
        names += [each.name for each in fields(CalibrationRecipe)]
    else:  # text was for comparing candidates
        names += ["scores", "seed"]
    return words + flags_given(recipe, names)


@contextmanager
def _work_folder(out: Path | None, recipe: SearchRecipe) -> Iterator[Path]:
    """The folder that becomes `out`, or a temporary one where nothing is to be written."""
    if out is not None:
        with unfinished_folder(out, asdict(recipe), resumable=True, reached=reached) as folder:
            yield folder
    else:
        # Not resumable, so that an interrupted retraining does not state that it continues.
        with (
            TemporaryDirectory() as name,
            unfinished_folder(Path(name) / "search", asdict(recipe)) as folder,
        ):
            yield folder


def _write(report: SearchReport, folder: Path) -> None:
    """Write the report's files, and remove what only an interrupted search needs."""
    write_json(folder / "search.json", report.to_json())
    (folder / "search.md").write_text(report.to_markdown(), encoding="utf-8")
    if can_draw():
        draw_pareto(report, folder / "pareto.png")
    else:
        logger.info("no picture: pip install 'minitron[plots]'")
    for name in _WORK:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
