"""`minitron importance`: measure what matters in a model, and save the scores for `prune`.

measure_importance(source="tiny", out="tiny.safetensors", corpus="books.jsonl.gz")
"""

from pathlib import Path

from minitron.errors import visible
from minitron.model.importance import Importance
from minitron.printing import print_next
from minitron.recipe import verb
from minitron.recipes.importance import ImportanceRecipe
from minitron.scores.measuring import BY_ACTIVATIONS, measure_and_save, score
from minitron.scores.score_plots import check_drawable, draw_scores
from minitron.sources.opening import open_source, output_at
from minitron.sources.processes import is_first_process


@verb(ImportanceRecipe)
def measure_importance(recipe: ImportanceRecipe) -> Importance:
    """Measure how much every hidden channel, neuron, head, KV group and layer matters, and save it.

    Returns the Importance: hidden [hidden], ffn [layers, ffn], heads [layers, heads], kv_heads
    [layers, kv_heads], layers [layers] and, if asked for, blocks [layers - block_size + 1],
    float64. A model larger than the memory budget is read layer by layer; processes that torchrun
    launched share the corpus; an interrupted run resumes when the same call is made again. Raises
    SourceError, CorpusError, TargetError, OutputError. Source: arXiv 2407.14679 §2.2.
    """
    out = output_at(recipe.out)
    if recipe.plot is not None:
        check_drawable(Path(recipe.plot))
    source = open_source(recipe.source)
    if recipe.scores in BY_ACTIVATIONS:
        importance, writes = measure_and_save(source, recipe, out)
    else:
        importance, writes = score(source, recipe), True
        importance.save(out)
    if recipe.plot is not None and writes:
        draw_scores(importance, source.architecture, Path(recipe.plot))
    return importance


def command(recipe: ImportanceRecipe) -> None:
    """What the command line runs and prints."""
    measured = measure_importance(**vars(recipe))
    if is_first_process():
        scores = visible(measured.made_by["scores"])
        print(f"{recipe.out}: {scores} scores of {', '.join(measured.axes)}")
        smaller = ["minitron", "prune", recipe.source, f"{Path(recipe.out).stem}-smaller"]
        print_next([*smaller, "--ratio", 0.5, "--importance", recipe.out])
