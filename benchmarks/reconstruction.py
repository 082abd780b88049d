"""Measure what a reconstruction is worth: the teacher cut, without training, with and without it.

Each axis alone and all of them together, at one set of sizes: as it is cut, then with
`--reconstruct auto` by channels (select) and, where hidden_size is cut, by directions (rotate). All
have the same importance, measured once a seed, and the same calibration text. Writes
benchmarks/results/reconstruction.json.

    python benchmarks/reconstruction.py --corpus books.jsonl.gz --held-out valid.jsonl.gz
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import minitron
from minitron.candidates.texts import first_tokens
from minitron.evaluation.loss import evaluate_text
from minitron.sources.loading import load_model, load_tokenizer
from minitron.sources.opening import open_source
from minitron.text.corpus import HeldOut, held_out_text

RESULTS = Path(__file__).parent / "results" / "reconstruction.json"
HALF = {"hidden_size": 192, "intermediate_size": 592}
HALF |= {"num_attention_heads": 6, "num_hidden_layers": 5}  # tiny-half's
CUTS: dict[str, dict[str, int]] = {
    "half": HALF,
    "hidden": {"hidden_size": 160},
    "ffn": {"intermediate_size": 512},
    "heads": {"num_attention_heads": 4},
    "layers": {"num_hidden_layers": 4},
}
HELD_OUT_TOKENS, SEQ_LEN = 73_728, 512  # as in docs/family.md


def loss_of(model: str, held_out: HeldOut) -> float:
    """Nats a token."""
    return evaluate_text(load_model(open_source(model)), held_out).loss


def rows_of(seed: int, held_out: HeldOut, options: Any, work: Path) -> list[dict[str, Any]]:
    """The loss of every cut, in each way, with the importance and text of one seed."""
    text = {"corpus": options.corpus, "samples": options.samples, "seq_len": SEQ_LEN, "seed": seed}
    scores = str(work / "scores.safetensors")
    minitron.importance("tiny", scores, **text)
    rows = []
    for cut in options.cuts or CUTS:
        ways: dict[str, dict[str, Any]] = {"as it is cut": {}}
        ways["select"] = {**text, "reconstruct": "auto", "hidden": "select"}
        if "hidden_size" in CUTS[cut]:
            ways["rotate"] = {**text, "reconstruct": "auto", "hidden": "rotate"}
        for way, chosen in ways.items():
            out = str(work / f"{cut} {way}")
            minitron.prune("tiny", out, importance=scores, **CUTS[cut], **chosen)
            loss = loss_of(out, held_out)
            rows.append({"cut": cut, "way": way, "seed": seed, "loss": loss})
            print(f"{cut:8} {way:14} seed {seed}  {loss:.4f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cuts", nargs="+", choices=list(CUTS))
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        work = Path(name)
        tokenizer = load_tokenizer(open_source("tiny"))
        whole = held_out_text(options.held_out, tokenizer, SEQ_LEN)
        held_out = first_tokens(whole, HELD_OUT_TOKENS)
        teacher = loss_of("tiny", held_out)
        print(f"teacher {teacher:.4f}", flush=True)
        rows = []
        for seed in options.seeds:
            (work / f"{seed}").mkdir()
            rows += rows_of(seed, held_out, options, work / f"{seed}")
    found = {"calibration_tokens": options.samples * SEQ_LEN, "teacher": teacher, "rows": rows}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
