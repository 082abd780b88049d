"""What the processes of one training run share: their output folder and their text.

A single process is a run too.

    with shared_folder(out, recipe) as folder:
        corpus = load_text(source, "books.jsonl.gz", seq_len=512, folder=folder)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from minitron.files.atomic_file import atomic_file
from minitron.files.unfinished import partial_of, unfinished_folder
from minitron.model.source import Source
from minitron.sources.loading import load_model, load_tokenizer
from minitron.sources.processes import device_of_run, processes_of_run
from minitron.text.corpus import Corpus, load_corpus, load_ids
from minitron.text.sampling import self_corpus

SELF_SAMPLES = 256
_SAMPLES_FILE = "self.npy"


@contextmanager
def shared_folder(out: Path, recipe: Any) -> Iterator[Path]:
    """The unfinished folder of a resumable run; the first process creates and renames it."""
    processes = processes_of_run()
    if not processes.is_main_process:
        processes.wait_for_everyone()  # until the folder exists
        yield partial_of(out)
        processes.wait_for_everyone()  # until no process uses it
        processes.wait_for_everyone()  # until it is renamed
        return
    with unfinished_folder(out, asdict(recipe), resumable=True) as folder:
        processes.wait_for_everyone()
        yield folder
        (folder / _SAMPLES_FILE).unlink(missing_ok=True)
        processes.wait_for_everyone()
    processes.wait_for_everyone()


def load_text(
    source: Source,
    name: str,
    *,
    seq_len: int,
    folder: Path,
    samples: int | None = None,
    seed: int = 0,
) -> Corpus:
    """The text `name`, tokenized for `source`; `self` is sampled from it. Raises CorpusError."""
    if name.endswith(".npy"):
        return load_ids(name, seq_len=seq_len, samples=samples)
    if name == "self":
        return _load_samples(source, folder / _SAMPLES_FILE, seq_len, samples or SELF_SAMPLES, seed)
    return load_corpus(name, load_tokenizer(source), seq_len=seq_len, samples=samples, seed=seed)


def _load_samples(source: Source, file: Path, seq_len: int, samples: int, seed: int) -> Corpus:
    """Text sampled from the model, kept in `file` for other processes and a resumed run."""
    processes = processes_of_run()
    if processes.is_main_process and not file.exists():
        model = load_model(source, device=device_of_run())
        corpus = self_corpus(model, seq_len=seq_len, samples=samples, seed=seed)
        with atomic_file(file) as partial:
            np.save(partial, corpus.sequences)
    processes.wait_for_everyone()
    return Corpus(load_ids(str(file), seq_len=seq_len).sequences, "self")
