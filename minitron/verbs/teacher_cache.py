"""`minitron teacher-cache`: run a teacher over a corpus once, and write its outputs.

Knows how much space that takes, and that layers run one after another over a whole shard, so that
the teacher need not fit into memory. The folder is described in `teacher_cache`.

    cache_teacher("tiny", "tiny-cache", corpus="books.jsonl.gz")
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minitron.errors import OutputError, TargetError
from minitron.files.atomic_file import atomic_file
from minitron.files.device_memory import readable_bytes
from minitron.files.dtypes import dtype_named
from minitron.files.safetensors_file import TensorSpec, write_safetensors
from minitron.model.decoder import LogitScale
from minitron.model.source import Source
from minitron.progress import Progress
from minitron.recipe import record_of, verb
from minitron.recipes.training import TeacherCacheRecipe
from minitron.records.folder_writer import write_companions, write_json
from minitron.sources.layer_stream import LayerStream
from minitron.sources.loading import sequence_length
from minitron.sources.opening import open_source, output_at
from minitron.sources.processes import device_of_run, processes_of_run
from minitron.text.corpus import Corpus
from minitron.training.distillation import rest_log_mass
from minitron.training.teacher import output_embedding
from minitron.training.teacher_cache import (
    FILE,
    HEAD,
    IDS,
    TeacherCache,
    open_teacher_cache,
    shard_name,
)
from minitron.training.trained_folder import load_text, run_folder

SCHEMA = 1
_SHARD_BYTES = 512 << 20
_LOGITS = 1 << 25  # at once
_LEAST = -100.0  # log-probabilities below are stored as this

logger = logging.getLogger(__name__)


@verb(TeacherCacheRecipe)
def cache_teacher(recipe: TeacherCacheRecipe) -> TeacherCache:
    """Write a teacher's outputs on a corpus, for `distill(teacher_cache=...)`.

    An interrupted run resumes with the next shard when the same call is made again; processes that
    torchrun launched share the shards. Returns the cache. Raises SourceError, CorpusError,
    OutputError, TargetError.
    """
    out = output_at(recipe.out)
    source = open_source(recipe.teacher)
    _check(recipe, source)
    seq_len = sequence_length(source, recipe.seq_len)
    with run_folder(out, recipe, reached=_next_shard) as folder:
        corpus = load_text(
            source,
            recipe.corpus,
            seq_len=seq_len,
            folder=folder,
            samples=recipe.samples,
            seed=recipe.seed,
        )
        corpus.check_fits(source.architecture.vocab_size)
        described = _description(recipe, source, corpus)
        _begin(folder, out, source, corpus, described)
        _write_shards(folder, source, recipe, corpus, described["rows_a_shard"])
    return open_teacher_cache(out)


def command(recipe: TeacherCacheRecipe) -> None:
    """What the command line runs and prints."""
    cache_teacher(**vars(recipe))
    if processes_of_run().is_main_process:
        print(f"{recipe.out}: written")


def _check(recipe: TeacherCacheRecipe, source: Source) -> None:
    """Refuse more tokens than the vocabulary has, and weights that are not there."""
    architecture = source.architecture
    if recipe.top_k is not None and recipe.top_k >= architecture.vocab_size:
        raise TargetError(
            f"--top-k is {recipe.top_k:,}, the vocabulary has {architecture.vocab_size:,} tokens: "
            "keep fewer, or leave it out to keep all exactly"
        )
    source.check_weights()


def _description(recipe: TeacherCacheRecipe, source: Source, corpus: Corpus) -> dict[str, Any]:
    samples, seq_len = corpus.sequences.shape
    row_bytes = (seq_len - 1) * _bytes_a_token(recipe, source)
    return {
        "schema": SCHEMA,
        "teacher": source.description,
        "recipe": record_of(recipe),
        "corpus_digest": corpus.digest,
        "samples": samples,
        "seq_len": seq_len,
        "rows_a_shard": max(1, min(samples, _SHARD_BYTES // row_bytes)),
    }


def _bytes_a_token(recipe: TeacherCacheRecipe, source: Source) -> int:
    if recipe.top_k is None:
        return 2 * source.architecture.hidden_size
    return 4 * recipe.top_k + 2 * (recipe.top_k + 1)


def _begin(
    folder: Path, out: Path, source: Source, corpus: Corpus, described: Mapping[str, Any]
) -> None:
    """Write all but the shards, unless an earlier run did; log how much disk they take."""
    processes = processes_of_run()
    if processes.is_main_process:
        if (folder / FILE).exists():
            earlier = json.loads((folder / FILE).read_text(encoding="utf-8"))
            if earlier != json.loads(json.dumps(described)):
                raise OutputError(
                    f"{folder} was begun on another text or teacher of this name: remove it"
                )
        else:
            _check_space(out, source, described)
            np.save(folder / IDS, corpus.sequences)
            write_companions(folder, source, source.config)
            if described["recipe"]["top_k"] is None:
                _save(folder / HEAD, {"head": output_embedding(source).read()})
            with atomic_file(folder / FILE) as partial:
                write_json(partial, described)
    processes.wait_for_everyone()


def _next_shard(unfinished: Path) -> str | None:
    """Where a run continues in the folder of an earlier one; None where that wrote no shard."""
    written = len([*unfinished.glob("shard-*.safetensors")])
    return f"shard {written}" if written else None


def _check_space(out: Path, source: Source, described: Mapping[str, Any]) -> None:
    recipe = TeacherCacheRecipe(out=str(out), **described["recipe"])
    tokens = described["samples"] * (described["seq_len"] - 1)
    a_token = _bytes_a_token(recipe, source)
    head = output_embedding(source).nbytes if recipe.top_k is None else 0
    needed, free = tokens * a_token + head, shutil.disk_usage(out.absolute().parent).free
    size = f"{readable_bytes(needed)}: {a_token:,} bytes for each of {tokens:,} tokens" + (
        f" and {readable_bytes(head)} of output embedding" if head else ""
    )
    if needed > free:
        raise OutputError(
            f"the cache takes {size}, and {out.absolute().parent} has {readable_bytes(free)} "
            "free: keep fewer samples, or --top-k"
        )
    logger.info("the cache takes %s (%s free)", size, readable_bytes(free))


def _write_shards(
    folder: Path, source: Source, recipe: TeacherCacheRecipe, corpus: Corpus, rows: int
) -> None:
    """Write this process's share of the shards that are not there yet."""
    processes = processes_of_run()
    device = device_of_run()
    dtype = dtype_named(recipe.dtype)
    stream = LayerStream.of_source(source, dtype=dtype, device=device, keep=_fits(source, device))
    head = (
        None if recipe.top_k is None else output_embedding(source).read().to(device, torch.float32)
    )
    shards = [corpus.sequences[at : at + rows] for at in range(0, len(corpus.sequences), rows)]
    missing = [
        (folder / shard_name(number), shards[number])
        for number in range(processes.process_index, len(shards), processes.num_processes)
        if not (folder / shard_name(number)).exists()
    ]
    total, is_first = sum(ids.size for _, ids in missing), processes.is_main_process
    with Progress("teacher", total=total, unit="token", is_shown=is_first) as progress:
        for path, sequences in missing:
            ids = torch.from_numpy(sequences).long().to(device)
            hidden = _hidden(stream, ids, recipe.batch_size, progress)
            if recipe.top_k is None or head is None:
                kept = {"hidden": hidden.to(torch.bfloat16)}
            else:
                kept = _top_k(hidden, head, stream.logit_scale, recipe.top_k)
            _save(path, kept)


@torch.inference_mode()
def _hidden(stream: LayerStream, ids: Tensor, batch: int, progress: Progress) -> Tensor:
    """Last hidden states of all positions but the last: (rows, seq_len - 1, width)."""
    states = stream.embed_all(ids.split(batch))
    for index, layer in stream.layers():
        for place, part in enumerate(states):
            states[place] = stream.run(index, layer, part)
            progress.advance(part.shape[0] * part.shape[1] / stream.config.num_hidden_layers)
    return torch.cat([stream.normed(part)[:, :-1].cpu() for part in states])


@torch.inference_mode()
def _top_k(hidden: Tensor, head: Tensor, scale: LogitScale, k: int) -> dict[str, Tensor]:
    """The k likeliest tokens on each position, and the logs of their and the others' share."""
    chunks = hidden.flatten(0, 1).split(max(1, _LOGITS // head.shape[0]))
    likeliest = [_likeliest(chunk, head, scale, k) for chunk in chunks]
    ids, kept = (torch.cat(parts) for parts in zip(*likeliest, strict=True))
    shape = hidden.shape[:2]
    return {"ids": ids.view(*shape, k), "log_probabilities": kept.view(*shape, k + 1)}


def _likeliest(hidden: Tensor, head: Tensor, scale: LogitScale, k: int) -> tuple[Tensor, Tensor]:
    logits = scale(hidden.to(head.device, head.dtype) @ head.T)  # (tokens, vocabulary)
    known, ids = logits.topk(k)
    kept = torch.cat([known, rest_log_mass(logits, ids).unsqueeze(1)], 1) - logits.logsumexp(
        1, True
    )
    return ids.int().cpu(), kept.clamp(min=_LEAST).half().cpu()


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of tensors that appears only when complete."""
    specs = {
        name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
    }
    with atomic_file(path) as partial:
        write_safetensors(partial, specs, tensors.items())


def _fits(source: Source, device: str) -> bool:
    """Whether a GPU holds all layers; on a CPU the file cache is as good as memory of our own."""
    if device == "cpu":
        return False
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return 1.2 * sum(tensor.nbytes for tensor in source.tensors.values()) < free
