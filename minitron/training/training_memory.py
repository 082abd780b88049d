"""Training memory: whether a teacher fits beside its student's training, told before it is read.

Knows how memory follows from an architecture and a recipe, by formulas; measures only what is free.

    teacher_fits(source, recipe, ours, seq_len=512)
"""

import logging
import os

from minitron.files.device_memory import free_memory, readable_bytes
from minitron.files.dtypes import dtype_named
from minitron.model.architecture import Architecture
from minitron.model.source import Source
from minitron.recipe import DistillRecipe
from minitron.sources.loading import loaded_bytes
from minitron.training.shared_run import device_of_run, processes_of_run

_LOGITS_BYTES = {"cpu": 2 << 27, "cuda": 2 << 29}  # of student and teacher, as `fused_loss` does
_STATE_BYTES = 16  # a parameter: itself, its gradient and AdamW's two moments in float32

logger = logging.getLogger(__name__)


def teacher_fits(
    teacher: Source, recipe: DistillRecipe, student: Architecture, seq_len: int
) -> bool:
    """Whether this process has room for the teacher and for training the student beside it."""
    device = device_of_run()
    wished = dtype_named(recipe.teacher_dtype)
    needed = loaded_bytes(teacher, wished, device)
    training = training_bytes(student, recipe, seq_len=seq_len, device=device)
    free = free_memory(device)
    if device == "cpu":
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    processes_of_run().wait_for_everyone()  # all have looked before any takes what it needs
    fits = needed + training <= free
    if not fits:
        logger.info(
            "the teacher takes %s, training %s, and %s of memory may be used: the teacher is read "
            "layer by layer at every batch",
            *map(readable_bytes, (needed, training, free)),
        )
    return fits


def training_bytes(
    student: Architecture, recipe: DistillRecipe, *, seq_len: int, device: str
) -> int:
    """What a step of training holds, about: weights, gradients, AdamW's moments, activations, the
    loss's chunk of logits and its gradient of the output embedding."""
    state = _STATE_BYTES * student.parameters
    loss = 4 * student.vocab_size * student.hidden_size + _LOGITS_BYTES[device.partition(":")[0]]
    tokens = recipe.batch_size * seq_len
    layers = student.num_hidden_layers
    inside = _numbers_inside(student)
    if recipe.gradient_checkpointing:
        held = layers * student.hidden_size + inside
    else:
        held = layers * inside
    return state + loss + 4 * tokens * held


def _numbers_inside(student: Architecture) -> int:
    """Numbers that a layer keeps of each token for its backward pass."""
    queries = student.num_attention_heads * student.head_dim
    keys = student.num_key_value_heads * student.head_dim
    return (
        6 * student.hidden_size  # the stream, norms and their outputs, twice
        + 4 * (queries + keys)  # before and after rotation, values, attention's output
        + (4 if student.family.is_gated else 2) * student.intermediate_size
    )
