"""Compare llama.cpp itself with the models whose GGUF files `convert --to gguf` has written.

Each model is written in each type and opened by llama-cpp-python in another environment. Compared
are the logits of a prompt, the tokens chosen greedily after it, and the ids of difficult texts.
Without SRC, tiny random models of every family that has a GGUF form, with the embedded teacher's
tokenizer. Of a quantised file the logits are also compared with those of minitron's own reader.

    python3 -m venv llama && llama/bin/pip install llama-cpp-python==0.3.36
    python benchmarks/gguf_engines.py --python llama/bin/python SmolLM2-135M.gguf SmolLM2-135M
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import minitron
from minitron.conversion.sentencepiece_model import DIFFICULT
from minitron.model.families import FAMILIES
from minitron.sources.loading import load_model, load_tokenizer
from minitron.sources.opening import open_source, zoo

RESULT = Path(__file__).parent / "results" / "gguf_engines.json"
PROMPT = "It was the best of times, it was the worst of times, it was the age of wisdom"
TOKENS = 32  # chosen greedily
TYPES = ("f32", "f16", "bf16", "q8_0")
# Runs in the other environment: no package of this one is there.
ENGINE = """
import json, sys
import llama_cpp
asked = json.load(sys.stdin)
model = llama_cpp.Llama(asked["path"], n_ctx=512, logits_all=True, verbose=False, n_threads=1)
model.eval(asked["ids"])
logits = model.scores[: len(asked["ids"])].tolist()
model.reset()
chosen = []
for token in model.generate(asked["ids"], temp=0.0, repeat_penalty=1.0):
    chosen.append(token)
    if len(chosen) == asked["tokens"]:
        break
ids = [model.tokenize(text.encode(), add_bos=True, special=True) for text in asked["texts"]]
found = {"version": llama_cpp.__version__, "logits": logits, "chosen": chosen, "ids": ids}
print(json.dumps(found))
"""


def random_models(folder: Path) -> Iterator[Path]:
    """A tiny model of each family, of sizes that llama.cpp's code for all of them takes."""
    for family in (each for each in FAMILIES.values() if each.gguf is not None):
        torch.manual_seed(0)
        config = CONFIG_MAPPING[family.model_type](
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=32,
            vocab_size=4096,
            max_position_embeddings=512,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.08)
        model.save_pretrained(folder / family.model_type)
        for path in zoo()["tiny"].glob("tokenizer*"):
            shutil.copy(path, folder / family.model_type)
        yield folder / family.model_type


def compared(source: str, kind: str, python: Path, folder: Path) -> dict[str, Any]:
    """The differences between llama.cpp and the source, for one type of GGUF."""
    out = folder / f"{Path(source).name}.{kind}.gguf"
    minitron.convert(source, str(out), to="gguf", dtype=kind)
    opened = open_source(source)
    tokenizer = load_tokenizer(opened)
    model = load_model(opened, dtype=torch.float32)
    ids = tokenizer(PROMPT)["input_ids"]
    texts = [text for text in DIFFICULT if text]
    asked = {"path": str(out), "ids": ids, "tokens": TOKENS, "texts": texts}
    done = subprocess.run(
        [python, "-c", ENGINE], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    engine = json.loads(done.stdout)
    logits = torch.tensor(engine["logits"])
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
        chosen = model.generate(
            torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None
        )[0, len(ids) :].tolist()
        dequantised = load_model(open_source(str(out)), dtype=torch.float32)
        own = dequantised(torch.tensor([ids])).logits[0]
    out.unlink()
    same = [one == other for one, other in zip(chosen, engine["chosen"], strict=False)]
    different = [
        text[:60]
        for text, found in zip(texts, engine["ids"], strict=True)
        if found != tokenizer(text)["input_ids"]
    ]
    return {
        "source": Path(source).name,
        "family": opened.architecture.model_type,
        "type": kind,
        "llama_cpp_python": engine["version"],
        "largest_logit": expected.abs().max().item(),
        "logit_difference": (logits - expected).abs().max().item(),
        "logit_difference_to_own_reader": (logits - own).abs().max().item(),
        "equal_greedy_tokens": same.index(False) if False in same else len(same),
        "of_greedy_tokens": TOKENS,
        "texts_with_other_ids": different,
        "of_texts": len(texts),
    }


def main() -> None:
    """Compare every model in every type, and write benchmarks/results/gguf_engines.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", metavar="SRC")
    parser.add_argument("--python", type=Path, required=True, help="with llama-cpp-python")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = options.sources or [str(path) for path in random_models(folder)]
        rows = []
        for source in sources:
            for kind in options.types:
                rows.append(compared(source, kind, options.python, folder))
                print(json.dumps(rows[-1]), flush=True)
    RESULT.write_text(json.dumps({"prompt": PROMPT, "compared": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
