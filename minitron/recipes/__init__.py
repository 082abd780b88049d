"""The recipe of each command, one file for a kind of commands, and published recipes in YAML."""

from collections.abc import Mapping

from minitron.recipe import Recipe
from minitron.recipes.conversion import ConvertRecipe
from minitron.recipes.evaluation import EvaluateRecipe
from minitron.recipes.first_steps import (
    DemoRecipe,
    GenerateRecipe,
    InspectRecipe,
    QuickstartRecipe,
)
from minitron.recipes.importance import ImportanceRecipe
from minitron.recipes.pruning import PruneRecipe, SearchRecipe
from minitron.recipes.publishing import CardRecipe, PushRecipe, RemakeRecipe
from minitron.recipes.training import DistillRecipe, TeacherCacheRecipe, TrainRecipe

# The commands in groups, both in the order of work.
COMMANDS: Mapping[str, tuple[type[Recipe], ...]] = {
    "First steps": (QuickstartRecipe, InspectRecipe, GenerateRecipe, DemoRecipe),
    "Make a model smaller": (PruneRecipe, SearchRecipe, ImportanceRecipe),
    "Train it": (DistillRecipe, TeacherCacheRecipe, TrainRecipe),
    "Measure and publish it": (EvaluateRecipe, CardRecipe, PushRecipe, RemakeRecipe),
    "Other formats": (ConvertRecipe,),
}
