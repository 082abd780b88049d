"""The house stands as CONTRIBUTING describes it: floors, names, and what an import costs."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import minitron
from minitron import cli

# A module imports only from floors below its own; on floors 1, 2 and 4 also from its left.
# Floor 3 is one activity an entry: they never know each other.
FLOORS: list[list[tuple[str, ...]]] = [
    [("modeling_nemotron",)],
    [
        ("minitron.credentials",),
        ("minitron.errors", "minitron.recorded_paths"),
        ("minitron.surroundings", "minitron.empty_weights"),
        ("minitron.foreign_parser", "minitron.system_errors"),
        ("minitron.plain_yaml", "minitron.checked_json", "minitron.tokenizer_ids"),
        ("minitron.front_matter", "minitron.generation_settings"),
        ("minitron.training.fused_loss", "minitron.training.logit_distances"),
        (
            "minitron.training.distillation",
            "minitron.training.cross_entropy",
            "minitron.training.intermediate_loss",
        ),
        ("minitron.recipe",),
        ("minitron.unfinished",),
        ("minitron.families", "minitron.token_ids"),
        ("minitron.record",),
        ("minitron.rotary", "minitron.tokenizer_files"),
        ("minitron.architecture",),
        ("minitron.byte_size", "minitron.resumable_file", "minitron.tensor_names"),
        ("minitron.tensors.file_identity",),
        ("minitron.tensors.lazy_tensor",),
        ("minitron.tensors.model_digest",),
        ("minitron.importance_scores",),
        ("minitron.plan",),
        ("minitron.making",),
        ("minitron.candidates.budget",),
        ("minitron.candidates.search_space", "minitron.candidates.search_report"),
        ("minitron.engines",),
        ("minitron.target_sizes",),
        ("minitron.tensors.stored_tensor",),
        ("minitron.hub.fetched_tensor", "minitron.hub.remote_tensor"),
        ("minitron.tensors.finite",),
        ("minitron.hub.partial_file", "minitron.hub.links", "minitron.hub.adapter"),
        (
            "minitron.tensors.file_window",
            "minitron.tensors.inert_pickle",
            "minitron.tensors.torch_tensors",
        ),
        ("minitron.tensors.torch_file",),
        ("minitron.tensors.safetensors_file",),
    ],
    [
        ("minitron.conversion",),
        ("minitron.hub.errors", "minitron.hub.verified_file", "minitron.hub.own_wheel"),
        ("minitron.hub.patience",),
        ("minitron.hub.repository",),
        ("minitron.hub.destination",),
        ("minitron.hub.committing",),
        ("minitron.hub.place",),
        ("minitron.hub.folder",),
        (
            "minitron.text.file_row",
            "minitron.text.text_file",
            "minitron.text.npy_file",
            "minitron.text.json_rows",
            "minitron.text.parquet_rows",
            "minitron.text.rows",
            "minitron.text.text_row",
            "minitron.text.passages",
            "minitron.text.encoding",
        ),
        ("minitron.corpus",),
        ("minitron.source",),
        ("minitron.held_source",),
        ("minitron.candidates.pareto_plot",),
        ("minitron.device_memory",),
        ("minitron.processes",),
        ("minitron.layer_stream",),
        ("minitron.streamed_loss",),
        ("minitron.sampling",),
        ("minitron.tensors.tensor_stream", "minitron.tensors.piece_writer"),
        ("minitron.tensors.shard_file",),
        ("minitron.folder_writer",),
        ("minitron.provenance",),
        ("minitron.evaluations.task_scores",),
        ("minitron.cards.template", "minitron.cards.kept_picture"),
        ("minitron.cards.texts",),
        ("minitron.cards.model_card",),
        ("minitron.cards.family",),
    ],
    [
        (
            "minitron.scores.scoring",
            "minitron.scores.calibration",
            "minitron.scores.sweep_plan",
            "minitron.scores.corpus_sweep",
            "minitron.scores.activation_scores",
            "minitron.scores.aggregation",
            "minitron.scores.layer_recorder",
            "minitron.scores.layer_cuts",
            "minitron.scores.score_plots",
            "minitron.scores.weight_scores",
        ),
        ("minitron.surgery",),
        (
            "minitron.training.causal_lm",
            "minitron.training.fitting",
            "minitron.training.shared_run",
            "minitron.training.trainer_arguments",
            "minitron.training.progress",
            "minitron.training.loss_curve",
            "minitron.training.trained_folder",
            "minitron.training.distilling",
            "minitron.training.distill_trainer",
            "minitron.training.inner_states",
            "minitron.training.teacher",
            "minitron.training.teacher_cache",
            "minitron.training.teacher_writing",
            "minitron.training.text_trainer",
            "minitron.training.top_k_loss",
            "minitron.training.training_memory",
            "minitron.training.vocabularies",
        ),
        (
            "minitron.evaluation",
            "minitron.evaluations.held_out",
            "minitron.evaluations.preset",
            "minitron.evaluations.task_harness",
            "minitron.evaluations.summaries",
        ),
        ("minitron.candidates.latency", "minitron.candidates.decode_step"),
        ("minitron.generation", "minitron.quantization"),
        ("minitron.inspection",),
        ("minitron.converting",),
        (
            "minitron.hub.publishing",
            "minitron.hub.publishable",
            "minitron.hub.space_publishing",
            "minitron.hub.space_folder",
        ),
    ],
    [
        ("minitron.candidates.search_texts", "minitron.candidates.shortlist"),
        ("minitron.candidates.comparison",),
        ("minitron.candidates.searching", "minitron.candidates.choice"),
        ("minitron.pruning",),
        ("minitron.remaking",),
        ("minitron.first_run",),
    ],
    [("minitron.space",), ("minitron", "minitron.cli", "minitron.__main__")],
]
ACTIVITIES = 3
PLACES = {
    module: (floor, room)
    for floor, rooms in enumerate(FLOORS)
    for room, modules in enumerate(rooms)
    for module in modules
}
PACKAGES = {
    "minitron",
    "minitron.candidates",
    "minitron.cards",
    "minitron.conversion",
    "minitron.evaluations",
    "minitron.hub",
    "minitron.scores",
    "minitron.space",
    "minitron.tensors",
    "minitron.text",
    "minitron.training",
    "modeling_nemotron",
}
CLOSED = {"minitron.conversion", "minitron.space", "modeling_nemotron"}  # modules share one place


def is_room(package: str) -> bool:
    """A folder of minitron/ that holds only a docstring of its own."""
    return package not in CLOSED and package != "minitron"


def modules() -> list[str]:
    found = PACKAGES - {name for name in PACKAGES if is_room(name)}
    for name in sorted(PACKAGES):
        package = importlib.import_module(name)
        found |= {f"{name}.{m.name}" for m in pkgutil.iter_modules(package.__path__) if not m.ispkg}
    return sorted(found)


def place_of(module: str) -> tuple[int, int]:
    """The floor and room of a module; (-1, 0) where it has none."""
    package = module.rpartition(".")[0]
    return PLACES.get(package if package in CLOSED else module, (-1, 0))


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


@pytest.mark.parametrize("command", [name for name in cli.app if not name.startswith("-")])
def test_every_command_is_a_function_of_the_same_name_and_arguments(command: str) -> None:
    function = getattr(minitron, command.replace("-", "_"))
    options = inspect.signature(cli.app[command].default_command).parameters
    own = {"as_json", "recipe_file"}  # how a command prints, and where its options stand
    expected = [name for name in options if name not in own]
    assert [*inspect.signature(function).parameters] == expected


def test_the_public_names_are_these() -> None:
    assert minitron.__all__ == [
        "MinitronError",
        "cache_teacher",
        "card",
        "convert",
        "demo",
        "distill",
        "distillation_loss",
        "evaluate",
        "generate",
        "importance",
        "inspect",
        "measure_importance",
        "prune",
        "push",
        "quickstart",
        "remake",
        "search",
        "teacher_cache",
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
