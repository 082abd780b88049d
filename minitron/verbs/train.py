"""`minitron train`: train a causal language model on text, with transformers' Trainer.

train(out="tiny", init="config-and-tokenizer", corpus="books.jsonl.gz", scratch=True)
"""

from minitron.files.unfinished import partial_of
from minitron.recipe import verb
from minitron.recipes.training import TrainRecipe
from minitron.sources.hub_folder import HubFolder
from minitron.sources.opening import open_source, output_at
from minitron.training.trained_folder import print_trained, train_to_folder
from minitron.training.trainer_arguments import check_trainer


@verb(TrainRecipe)
def train(recipe: TrainRecipe) -> HubFolder:
    """Train a model from scratch or further, by cross-entropy, and write a Hub-ready folder.

    An interrupted run resumes from its last checkpoint when the same call is made again. Under
    torchrun or accelerate launch, all processes train together. Returns the folder, with
    `training.jsonl` (one record a logged step) and, where matplotlib is installed, `loss.png`.
    No logits are held (`cross_entropy_loss`). Raises SourceError, CorpusError, OutputError and
    TargetError.
    """
    out = output_at(recipe.out)
    check_trainer(recipe)
    train_to_folder(open_source(recipe.init), recipe, partial_of(out))
    return HubFolder.at(out)


def command(recipe: TrainRecipe) -> None:
    """What the command line runs and prints."""
    train(**vars(recipe))
    print_trained(recipe)
