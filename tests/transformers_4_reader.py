"""Open model folders with transformers 4 and save what it computes; test_transformers_4 runs this.

python transformers_4_reader.py JOBS.json RESULTS.pt   # a job: a folder, a text and token ids
"""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
from transformers.utils import logging as transformers_logging


class KeptMessages(logging.Handler):
    """Keeps every message of level warning or higher."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def open_folder(job: dict[str, Any], kept: KeptMessages) -> dict[str, Any]:
    """Logits, token ids and chat templates of a folder, and the warnings meanwhile."""
    kept.messages.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tokenizer = AutoTokenizer.from_pretrained(job["folder"])
        options = {"dtype": "auto", **job["options"]}
        model = AutoModelForCausalLM.from_pretrained(job["folder"], **options).eval()
        with torch.no_grad():
            logits = model(torch.tensor([job["ids"]])).logits
    return {
        "logits": logits,
        "dtype": model.dtype,
        "use_cache": model.config.use_cache,
        "ids": tokenizer(job["text"])["input_ids"],
        "inputs": list(tokenizer(job["text"])),
        "templates": tokenizer.chat_template,
        "warnings": [*kept.messages, *(str(warning.message) for warning in caught)],
    }


def main(jobs: Path, results: Path) -> None:
    kept = KeptMessages()
    transformers_logging.add_handler(kept)
    found = {name: open_folder(job, kept) for name, job in json.loads(jobs.read_text()).items()}
    torch.save({"version": __version__, **found}, results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
