"""`minitron distill`: train a student to predict what its teacher predicts, and write a Hub folder.

Knows the order of the steps, and what is refused before anything is loaded. The trainer is in
`trainers`, the loss in `distillation`, the teacher in `teacher` and `teacher_cache`.

    distill("tiny-half", "tiny-student", teacher="tiny", corpus="books.jsonl.gz")
"""

import logging
from dataclasses import dataclass, replace
from functools import partial
from math import gcd
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from minitron.errors import TargetError
from minitron.evaluation.loss import evaluate_text
from minitron.files.dtypes import dtype_named
from minitron.model.architecture import Architecture
from minitron.model.family import EMBEDDING, HEAD
from minitron.model.source import Source
from minitron.options import check_unset
from minitron.recipe import verb
from minitron.recipes.training import DistillRecipe
from minitron.records.record_writer import inherited_from, sizes_of
from minitron.sources.hub_folder import HubFolder
from minitron.sources.layer_stream import LayerStream
from minitron.sources.loading import load_model, sequence_length
from minitron.sources.opening import open_source, output_at
from minitron.sources.processes import device_of_run, processes_of_run
from minitron.text.corpus import HeldOut
from minitron.training.distillation import distillation_loss
from minitron.training.fitting import (
    CHECKPOINTS,
    FitResult,
    Texts,
    digest_of,
    fit,
    initial_model,
    last_step,
)
from minitron.training.inner_states import InnerStates, state_pairs
from minitron.training.teacher import (
    DistillLoss,
    RunningTeacher,
    StreamedTeacher,
    Teacher,
    output_embedding,
    shared_rows,
    silence_padding,
    teacher_fits,
)
from minitron.training.teacher_cache import TeacherCache, open_teacher_cache
from minitron.training.trained_folder import (
    is_complete,
    load_text,
    print_trained,
    run_folder,
    write_trained,
)
from minitron.training.trainer_arguments import check_trainer
from minitron.training.trainers import DistillTrainer, add_projection

logger = logging.getLogger(__name__)


@verb(DistillRecipe)
def distill(recipe: DistillRecipe) -> HubFolder:
    """Train a student on its teacher's predictions, and write a Hub-ready folder.

    The teacher runs beside the student, or its outputs were written by `cache_teacher`. The loss is
    `distillation_loss`, plus alpha times the distance of inner states: unless others are named,
    those of the embeddings and of the third last layers (2407.14679, section 3 and table 17).
    An interrupted run resumes from its last checkpoint when the same call is made again; under
    torchrun or accelerate launch all processes train together. Returns the folder, with
    `training.jsonl` and, where matplotlib is installed, `loss.png`. Raises SourceError,
    TokenizerError, CorpusError, OutputError, TargetError.
    """
    out = output_at(recipe.out)
    check_trainer(recipe)
    student = open_source(recipe.student)
    plan = _plan_of(recipe, student)
    with run_folder(out, recipe, reached=last_step) as folder:
        if not is_complete(folder):
            _distill(student, plan, recipe, folder)
    return HubFolder.at(out)


def command(recipe: DistillRecipe) -> None:
    """What the command line runs and prints."""
    distill(**vars(recipe))
    print_trained(recipe)


@dataclass(frozen=True)
class _DistillationPlan:
    """The teacher, the loss and what is compared; known before anything is loaded."""

    source: Source  # of a cache: the teacher without its weights
    cache: TeacherCache | None
    record: dict[str, Any]
    loss: DistillLoss
    inner: InnerStates
    rows: int  # of both embeddings that are their vocabulary

    def teacher(self, recipe: DistillRecipe, student: Source, *, seq_len: int) -> Teacher:
        """Load the teacher, stream it layer by layer, or read its cached outputs."""
        device = device_of_run()
        if self.cache is not None:
            return self.cache.teacher(device)
        dtype = dtype_named(recipe.teacher_dtype)
        places = [pair.theirs for pair in self.inner.pairs]
        streams = recipe.stream_teacher
        if streams is None:
            ours = student.architecture
            streams = not teacher_fits(self.source, recipe, ours, seq_len)
        if streams:
            stream = LayerStream.of_source(self.source, dtype=dtype, device=device, keep=False)
            head = output_embedding(self.source).read().to(device)
            return StreamedTeacher(stream, head, places)
        return RunningTeacher(load_model(self.source, dtype=dtype, device=device), places)


def _distill(student: Source, plan: _DistillationPlan, recipe: DistillRecipe, folder: Path) -> None:
    inherited = inherited_from(student)
    texts = _texts(recipe, student, plan, folder)
    for corpus in (texts.corpus, texts.held_out):
        if corpus is not None:
            corpus.check_fits(plan.rows)
    teacher = plan.teacher(recipe, student, seq_len=texts.corpus.sequences.shape[1])
    set_seed(recipe.seed)
    model = initial_model(student, recipe)
    teachers_width = plan.source.architecture.hidden_size
    add_projection(model, teachers_width, plan.inner)
    make_trainer = partial(
        DistillTrainer, teacher=teacher, loss=plan.loss, inner=plan.inner, rows=plan.rows
    )
    fitted = fit(
        model,
        texts,
        folder / CHECKPOINTS,
        recipe,
        make_trainer=make_trainer,
        models={"student": digest_of(student), "teacher": plan.record["digest"]},
        verb="distill",
        unfinished=folder,
    )
    write_trained(
        folder,
        student,
        recipe,
        _without_padding(fitted, student, plan.rows),
        texts,
        command="distill",
        loss=f"{recipe.kind} from the teacher",
        inherited=inherited,
        teacher={**plan.record, **_held_out_loss(teacher, texts)},
    )


def _held_out_loss(teacher: Teacher, texts: Texts) -> dict[str, float]:
    """The teacher's loss on the held-out text, as the record has it, where it is in memory."""
    is_main = processes_of_run().is_main_process
    if texts.held_out is None or not is_main or not isinstance(teacher, RunningTeacher):
        return {}
    ids = texts.held_out.sequences
    held_out = HeldOut((ids[:, :-1],), (ids[:, 1:],), None)
    return {"held_out_loss": evaluate_text(teacher.model, held_out).loss}


def _without_padding(fitted: FitResult, student: Source, rows: int) -> FitResult:
    """The trained weights, with padding rows of which greedy decoding generates none."""
    architecture = student.architecture
    if not fitted.weights or rows == architecture.vocab_size:
        return fitted
    head = HEAD if HEAD in architecture.shapes() else EMBEDDING
    silent = silence_padding(fitted.weights[head], rows)
    return replace(fitted, weights={**fitted.weights, head: silent})


def _plan_of(recipe: DistillRecipe, student: Source) -> _DistillationPlan:
    """The teacher and the loss, checked against the student."""
    cache, source = _teacher_of(recipe)
    loss = DistillLoss(recipe.kind, recipe.temperature, recipe.ce_weight, recipe.beta)
    _check_loss(loss, cache)
    rows = shared_rows(student, source)
    ours, theirs = student.architecture, source.architecture
    if theirs.parameters < ours.parameters:
        logger.warning(
            "the teacher %s has %s parameters, the student %s: it has less to teach",
            source.name,
            f"{theirs.parameters:,}",
            f"{ours.parameters:,}",
        )
    described = cache.described["teacher"] if cache is not None else source.description
    return _DistillationPlan(
        source=source,
        cache=cache,
        record={**described, **sizes_of(theirs)},
        loss=loss,
        inner=_inner_states(recipe, ours, theirs, cache),
        rows=rows,
    )


def _teacher_of(recipe: DistillRecipe) -> tuple[TeacherCache | None, Source]:
    """The cached outputs, where they are given, and the teacher."""
    named = None if recipe.teacher is None else open_source(recipe.teacher)
    if recipe.teacher_cache is not None:
        cache = open_teacher_cache(Path(recipe.teacher_cache))
        if named is not None:
            cache.check_teacher(named)
        return cache, cache.source
    if named is None:
        raise TargetError("no teacher: give --teacher MODEL, or --teacher-cache FOLDER")
    return None, named


def _check_loss(loss: DistillLoss, cache: TeacherCache | None) -> None:
    """Refuse options that the loss refuses, and those that the cache cannot answer."""
    one = torch.zeros(1, 1)
    distillation_loss(one, one, one, one, labels=torch.zeros(1, dtype=torch.long), **vars(loss))
    kept_all = cache is None or cache.top_k is None
    if not kept_all and (loss.kind, loss.temperature) != ("forward_kl", 1.0):
        raise TargetError(
            f"--kind {loss.kind} at --temperature {loss.temperature:g} needs all probabilities, "
            "the cache has the likeliest only: take forward_kl at 1, or a cache without --top-k"
        )


def _inner_states(
    recipe: DistillRecipe, ours: Architecture, theirs: Architecture, cache: TeacherCache | None
) -> InnerStates:
    """Which states between layers are compared, and their weight. Raises TargetError."""
    alpha = recipe.alpha
    if alpha == "auto":
        is_cut = 2 * ours.num_hidden_layers <= theirs.num_hidden_layers
        has_map = recipe.layer_map is not None or ours.num_hidden_layers > 2
        alpha = "dynamic" if is_cut and has_map and cache is None else 0.0
    if alpha == 0:
        check_unset(
            recipe,
            ("layer_map", "inner_states"),
            f"at --alpha {recipe.alpha} here, only at --alpha dynamic or a number",
        )
        return InnerStates()
    if alpha != "dynamic" and not 0 < alpha < float("inf"):
        raise TargetError(f"--alpha is {alpha}: it must be 0 or above, auto or dynamic")
    if cache is not None:
        raise TargetError(
            f"--alpha {alpha} needs the states between the teacher's layers, which no cache has: "
            "give --teacher instead"
        )
    return InnerStates(
        pairs=state_pairs(recipe.inner_states, recipe.layer_map, ours=ours, theirs=theirs),
        # KV groups, which pruning of query heads leaves, make the parts of both models.
        relation_heads=gcd(ours.num_key_value_heads, theirs.num_key_value_heads),
        alpha=None if alpha == "dynamic" else alpha,
    )


def _texts(recipe: DistillRecipe, student: Source, plan: _DistillationPlan, folder: Path) -> Texts:
    """The text to train on, which must be the cache's if there is one, and the held-out text."""
    seq_len, samples, seed = recipe.seq_len, recipe.samples, recipe.seed
    if plan.cache is not None:  # the options of the cache, where none are given
        made = plan.cache.described
        seq_len, seed = seq_len or made["seq_len"], made["recipe"]["seed"]
        samples = samples or made["recipe"]["samples"]
    seq_len = sequence_length(student, seq_len)
    load = partial(load_text, seq_len=seq_len, folder=folder, seed=seed)
    held_out = None if recipe.eval_corpus is None else load(student, recipe.eval_corpus)
    if plan.cache is None:
        source = plan.source if recipe.corpus == "self" else student
        return Texts(load(source, recipe.corpus, samples=samples), held_out)
    if recipe.corpus == plan.cache.corpus.name == "self":
        return Texts(plan.cache.corpus, held_out)
    corpus = load(student, recipe.corpus, samples=samples)
    plan.cache.check_corpus(corpus)
    return Texts(corpus, held_out)
