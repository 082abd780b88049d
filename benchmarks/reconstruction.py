"""Measure what a reconstruction is worth: a model cut, without training, with and without it.

The embedded teacher on each axis alone and on all together, or SmolLM2-135M at three quarters and
at half of its parameters: as it is cut, then with `--reconstruct auto` by channels (select) and,
where hidden_size is cut, by directions (rotate). All have the same importance, measured once a
seed, and the same calibration text. Writes benchmarks/results/reconstruction/NAME.json after every
model, and does not repeat what is there.

    python benchmarks/reconstruction.py --corpus books.jsonl.gz --held-out valid.jsonl.gz
    python benchmarks/reconstruction.py --corpus books.jsonl.gz --held-out valid.jsonl.gz \
        --source path/to/SmolLM2-135M --name smollm2 --samples 32
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import minitron
from minitron.candidates.texts import first_tokens
from minitron.evaluation.loss import evaluate_text
from minitron.sources.loading import load_model, load_tokenizer
from minitron.sources.opening import open_source
from minitron.text.corpus import HeldOut, held_out_text

RESULTS = Path(__file__).parent / "results" / "reconstruction"
HALF = {"hidden_size": 192, "intermediate_size": 592}
HALF |= {"num_attention_heads": 6, "num_hidden_layers": 5}  # tiny-half's
CUTS: dict[str, dict[str, int]] = {
    "half": HALF,
    "hidden": {"hidden_size": 160},
    "ffn": {"intermediate_size": 512},
    "heads": {"num_attention_heads": 4},
    "layers": {"num_hidden_layers": 4},
}
# Its hidden size stays a multiple of its nine heads, as transformers asks of a Llama.
SMOLLM2_CUTS: dict[str, dict[str, int]] = {
    "75 % by width": {"hidden_size": 486, "intermediate_size": 1248},
    "75 % by depth": {"num_hidden_layers": 21},
    "75 % by both": {"hidden_size": 513, "intermediate_size": 1408, "num_hidden_layers": 26},
    "50 % by width": {"hidden_size": 387, "intermediate_size": 872},
    "50 % by depth": {"num_hidden_layers": 11},
    "50 % by both": {"hidden_size": 450, "intermediate_size": 1088, "num_hidden_layers": 21},
}
SEQ_LEN = 512


def texts_of(options: argparse.Namespace) -> dict[str, HeldOut]:
    """The first tokens of each held-out text."""
    tokenizer = load_tokenizer(open_source(options.source))
    return {
        name: first_tokens(held_out_text(name, tokenizer, SEQ_LEN), options.held_out_tokens)
        for name in options.held_out
    }


def row_of(model: str, texts: dict[str, HeldOut], **what: Any) -> dict[str, Any]:
    """A model's parameters and its nats a token on each text."""
    loaded = load_model(open_source(model))
    losses = {Path(name).name: evaluate_text(loaded, text).loss for name, text in texts.items()}
    shown = ", ".join(f"{loss:.4f} on {name}" for name, loss in losses.items())
    print(*what.values(), shown, flush=True)
    return {**what, "parameters": minitron.inspect(model).parameters, "losses": losses}


def ways_of(sizes: dict[str, int], text: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """How a model is cut: the options of prune, by name."""
    ways: dict[str, dict[str, Any]] = {
        "at random": {"scores": "random", "seed": text["seed"]},
        "as it is cut": {},
        "select": {**text, "reconstruct": "auto", "hidden": "select"},
    }
    if "hidden_size" in sizes:
        ways["rotate"] = {**text, "reconstruct": "auto", "hidden": "rotate"}
    return ways


def measure(seed: int, options: argparse.Namespace, results: Path, work: Path) -> None:
    """Cut the source in each way with the importance and text of one seed; add rows to results."""
    cuts = CUTS if options.source == "tiny" else SMOLLM2_CUTS
    text = {"corpus": options.corpus, "samples": options.samples, "seq_len": SEQ_LEN, "seed": seed}
    texts, found = texts_of(options), json.loads(results.read_text())
    done = {(row["cut"], row["way"], row["seed"]) for row in found["rows"]}
    scores = str(work / "scores.safetensors")
    minitron.importance(options.source, scores, **text)
    for cut in options.cuts or cuts:
        for way, chosen in ways_of(cuts[cut], text).items():
            if (cut, way, seed) in done or (options.ways and way not in options.ways):
                continue
            out = str(work / "model")
            ranked = {} if way == "at random" else {"importance": scores}
            begun = time.monotonic()
            minitron.prune(options.source, out, **ranked, **cuts[cut], **chosen)
            seconds = round(time.monotonic() - begun, 1)
            row = row_of(out, texts, cut=cut, way=way, seed=seed, seconds=seconds)
            found["rows"].append(row)
            results.write_text(json.dumps(found, indent=1) + "\n")
            shutil.rmtree(out)


def main() -> None:
    """Measure what has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="tiny", help="tiny, or a folder of SmolLM2-135M")
    parser.add_argument("--name", default="tiny", help="of the file of results")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--held-out", required=True, nargs="+")
    parser.add_argument("--held-out-tokens", type=int, default=73_728, help="of each text")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cuts", nargs="+", help="some of the cuts")
    parser.add_argument("--ways", nargs="+", help="some of the ways")
    options = parser.parse_args()
    results = RESULTS / f"{options.name}.json"
    if not results.exists():
        results.parent.mkdir(exist_ok=True)
        whole = row_of(options.source, texts_of(options), cut="nothing")
        found = {"calibration_tokens": options.samples * SEQ_LEN, "source": whole, "rows": []}
        results.write_text(json.dumps(found, indent=1) + "\n")
    for seed in options.seeds:
        with TemporaryDirectory() as work:
            measure(seed, options, results, Path(work))


if __name__ == "__main__":
    main()
