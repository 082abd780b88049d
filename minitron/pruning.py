"""Pruning: the steps from a source to a smaller model's Hub folder, in order.

prune(source="tiny", out="tiny-half", hidden_size=192, corpus="self")
"""

import logging
from dataclasses import asdict
from pathlib import Path

from minitron.architecture import Architecture, resized_config
from minitron.errors import TargetError
from minitron.folder_writer import specs_of, write_companions, write_weights
from minitron.hub_folder import HubFolder
from minitron.importance import Importance
from minitron.model_card import write_card
from minitron.plan import PruningPlan, axes_to_rank, choose_plan, share_kept
from minitron.provenance import write_provenance
from minitron.recipe import PruneRecipe, record_of, verb
from minitron.scoring import check_corpus_named, score
from minitron.source import Source, complete_tensors, hub_config, open_source
from minitron.surgery import narrowed, source_names
from minitron.tensor_stream import copied
from minitron.unfinished import check_absent, unfinished_folder

logger = logging.getLogger(__name__)


@verb(PruneRecipe)
def prune(recipe: PruneRecipe) -> HubFolder:
    """Cut a model to smaller sizes by importance and write it as a Hub-ready folder.

    Width (hidden, ffn, heads) and depth in one pass; sizes not given stay. Weights are streamed:
    some megabytes are held, never a tensor. Returns the folder. Raises a MinitronError, with
    nothing written, for a source that cannot be read, sizes that are no cut of it or that its
    family refuses, missing text, or an `out` that exists. Source: arXiv 2407.14679, section 2.
    """
    out = Path(recipe.out)
    check_absent(out)
    source = open_source(recipe.source)
    whole = Architecture.from_config(source.config)
    target = target_architecture(whole, recipe)
    hub_config(resized_config(source.config, target, tuple(range(target.num_hidden_layers))))
    tensors = complete_tensors(source, whole)
    importance = _importance(source, whole, target, recipe)
    plan = choose_plan(importance, whole, target)
    _tell(plan, importance)
    with unfinished_folder(out, asdict(recipe)) as folder:
        kept, names = narrowed(plan, tensors), source_names(plan)
        write_weights(folder, specs_of(kept), copied(kept, source.name, called=names))
        write_companions(folder, source, resized_config(source.config, target, plan.layers))
        write_provenance(
            folder,
            "prune",
            record_of(recipe),
            source,
            target=target,
            importance={**importance.made_by, "digest": importance.digest},
            share_of_importance_kept=share_kept(plan, importance),
            kept=plan.to_json(),
        )
        write_card(folder)
    return HubFolder.at(out)


def target_architecture(source: Architecture, recipe: PruneRecipe) -> Architecture:
    """The sizes that `recipe` asks for; those it does not name stay the source's.

    Raises ArchitectureError or TargetError for sizes that are no cut of the source.
    """
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    wished = {size: getattr(recipe, size) for size in sizes}
    target = source.resized(**{size: value for size, value in wished.items() if value is not None})
    axes_to_rank(source, target)
    return target


def _importance(
    source: Source, whole: Architecture, target: Architecture, recipe: PruneRecipe
) -> Importance:
    """What ranks: read from a file, measured, or nothing where nothing is cut."""
    if recipe.importance is not None:
        if recipe.corpus is not None:
            raise TargetError("--importance and --corpus are both given: choose one")
        return Importance.load(Path(recipe.importance))
    if not axes_to_rank(whole, target):
        return Importance(made_by={"scores": "none needed"})
    check_corpus_named(recipe)
    return score(source, recipe)


def _tell(plan: PruningPlan, importance: Importance) -> None:
    """Log what is kept of every axis that is cut, and of the parameters."""
    for axis, share in share_kept(plan, importance).items():
        kept, whole = plan.target.size(axis), plan.source.size(axis)
        logger.info("kept %d of %d %s, %.1f %% of score", kept, whole, axis, 100 * share)
    kept, whole = plan.target.parameters, plan.source.parameters
    logger.info("kept %d of %d parameters, %.1f %%", kept, whole, 100 * kept / whole)
