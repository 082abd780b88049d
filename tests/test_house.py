"""The house stands as CONTRIBUTING describes it: floors, names, and what an import costs."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import minitron

# A module imports only from floors below its own; on floors 1, 2 and 4 also from its left.
# Floor 3 is one activity an entry: they never know each other.
FLOORS: list[list[tuple[str, ...]]] = [
    [("modeling_nemotron",)],
    [
        ("minitron.errors",),
        ("minitron.distillation",),
        ("minitron.recipe",),
        ("minitron.unfinished",),
        ("minitron.families",),
        ("minitron.architecture",),
        ("minitron.byte_size", "minitron.resumable_file"),
        ("minitron.lazy_tensor",),
        ("minitron.model_digest",),
        ("minitron.importance",),
        ("minitron.plan",),
        ("minitron.budget",),
        ("minitron.search_space", "minitron.search_report"),
        ("minitron.engines",),
        ("minitron.stored_tensor",),
        ("minitron.fetched_tensor",),
        ("minitron.finite",),
        ("minitron.partial_file",),
        ("minitron.file_window", "minitron.inert_pickle", "minitron.torch_tensors"),
        ("minitron.torch_file",),
        ("minitron.safetensors_file",),
    ],
    [
        ("minitron.conversion",),
        ("minitron.hub_errors",),
        ("minitron.hub_repository",),
        ("minitron.hub_destination",),
        ("minitron.hub_folder",),
        ("minitron.corpus",),
        ("minitron.source",),
        ("minitron.held_source",),
        ("minitron.pareto_plot",),
        ("minitron.processes",),
        ("minitron.layer_stream",),
        ("minitron.sampling",),
        ("minitron.tensor_stream", "minitron.piece_writer"),
        ("minitron.folder_writer",),
        ("minitron.provenance",),
        ("minitron.model_card",),
    ],
    [
        (
            "minitron.scoring",
            "minitron.calibration",
            "minitron.sweep_plan",
            "minitron.corpus_sweep",
            "minitron.activation_scores",
            "minitron.aggregation",
            "minitron.layer_recorder",
            "minitron.layer_cuts",
            "minitron.score_plots",
            "minitron.weight_scores",
        ),
        ("minitron.surgery",),
        (
            "minitron.training",
            "minitron.fitting",
            "minitron.shared_run",
            "minitron.trainer_arguments",
            "minitron.training_progress",
            "minitron.loss_curve",
            "minitron.trained_folder",
            "minitron.distilling",
            "minitron.distill_trainer",
            "minitron.teacher",
            "minitron.teacher_cache",
            "minitron.teacher_writing",
            "minitron.top_k_loss",
            "minitron.vocabularies",
        ),
        ("minitron.evaluation",),
        ("minitron.latency", "minitron.decode_step"),
        ("minitron.generation",),
        ("minitron.inspection",),
        ("minitron.converting",),
        ("minitron.publishing",),
    ],
    [
        ("minitron.search_texts", "minitron.shortlist"),
        ("minitron.comparison",),
        ("minitron.searching",),
        ("minitron.pruning",),
        ("minitron.first_run",),
    ],
    [("minitron", "minitron.cli", "minitron.__main__")],
]
ACTIVITIES = 3
PLACES = {
    module: (floor, room)
    for floor, rooms in enumerate(FLOORS)
    for room, modules in enumerate(rooms)
    for module in modules
}
PACKAGES = {"minitron", "minitron.conversion", "modeling_nemotron"}


def modules() -> list[str]:
    found = set(PACKAGES)
    for name in sorted(PACKAGES):
        package = importlib.import_module(name)
        found |= {f"{name}.{m.name}" for m in pkgutil.iter_modules(package.__path__) if not m.ispkg}
    return sorted(found)


def place_of(module: str) -> tuple[int, int]:
    """The floor and room of a module; of a closed package all modules share one."""
    if module in PLACES:
        return PLACES[module]
    return PLACES[module.rpartition(".")[0]] if module.rpartition(".")[0] != "minitron" else (-1, 0)


def imports_of(module: str) -> set[str]:
    """Our modules that a module imports anywhere in its text, type-checking blocks included."""
    path = importlib.util.find_spec(module).origin
    package = module if Path(path).name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = f"{package}.{node.module}" if node.level else str(node.module)
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {name for name in found if name in modules()} - {module}


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_from_below(module: str) -> None:
    floor, room = place_of(module)
    assert floor >= 0, f"{module} stands on no floor: give it one"
    for imported in imports_of(module):
        its_floor, its_room = place_of(imported)
        below = its_floor < floor
        left = its_floor == floor and its_room < room and floor != ACTIVITIES
        same = (its_floor, its_room) == (floor, room)
        assert below or left or same, f"{module} imports {imported}, which is not below it"


def test_the_map_of_floors_names_only_modules_that_exist() -> None:
    missing = [m for m in PLACES if m != "minitron.__main__" and not importlib.util.find_spec(m)]
    assert missing == []


def test_every_verb_stays_its_function_whatever_is_imported() -> None:
    for module in modules():
        if not module.endswith("__main__"):
            importlib.import_module(module)
    for name in minitron.__all__:
        assert callable(getattr(minitron, name)), name
        assert getattr(minitron, name).__doc__, name


def test_the_public_names_are_these() -> None:
    assert minitron.__all__ == [
        "MinitronError",
        "cache_teacher",
        "convert",
        "distill",
        "distillation_loss",
        "evaluate",
        "generate",
        "inspect",
        "measure_importance",
        "prune",
        "push",
        "quickstart",
        "search",
        "train",
    ]


@pytest.mark.parametrize("command", ["", "prune", "train", "quickstart"])
def test_help_imports_neither_torch_nor_transformers(command: str) -> None:
    check = (
        "import sys\nfrom minitron.cli import main\nmain(sys.argv[1:])\n"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & sys.modules.keys()"
    )
    arguments = [*command.split(), "--help"]
    ran = subprocess.run(
        [sys.executable, "-c", check, *arguments], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "Usage: minitron" in ran.stdout


def test_importing_minitron_configures_nothing() -> None:
    check = (
        "import logging, minitron, minitron.pruning, modeling_nemotron\n"
        "from transformers import AutoConfig\n"
        "assert not logging.getLogger().handlers\n"
        "assert AutoConfig.for_model('nemotron').__class__.__module__.startswith('transformers')"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
