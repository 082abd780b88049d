"""Cut SmolLM2-135M with Torch-Pruning, the public peer that prunes such a model by width.

To the sizes of "75 % by width" in `reconstruction.py`, by the peer's magnitude of weights, as in
its example for language models, or by its Taylor expansion of the loss on the same calibration
text. The peer's dependency graph finds what is cut together; heads stay. The plain folder that is
saved is measured as all others are. Adds rows to benchmarks/results/reconstruction/NAME.json.
Needs `pip install torch-pruning==1.6.1`.

    python benchmarks/reconstruction_peer.py --corpus wikitext.txt --held-out valid.txt \\
        valid.jsonl.gz --source path/to/SmolLM2-135M
"""

import argparse
import json
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch_pruning
from reconstruction import RESULTS, SEQ_LEN, SMOLLM2_CUTS, row_of, texts_of

from minitron.sources.loading import load_model, load_tokenizer
from minitron.sources.opening import open_source
from minitron.text.corpus import load_corpus

PEER = f"Torch-Pruning {version('torch-pruning')}"
CUT = "75 % by width"
SEED = 0


def gradients(model: Any, options: argparse.Namespace) -> None:
    """Sum the gradients of the loss on the calibration text."""
    tokenizer = load_tokenizer(open_source(options.source))
    text = {"seq_len": SEQ_LEN, "samples": options.samples, "seed": SEED}
    corpus = load_corpus(options.corpus, tokenizer, **text)
    for sequence in torch.from_numpy(corpus.sequences).long().split(1):
        model(input_ids=sequence, labels=sequence).loss.backward()


def prune(model: Any, importance: Any) -> None:
    """Cut hidden_size and intermediate_size; heads stay."""
    sizes, config = SMOLLM2_CUTS[CUT], model.config
    ratios = {axis: 1 - size / getattr(config, axis) for axis, size in sizes.items()}
    mlps = [layer.mlp for layer in model.model.layers]
    attentions = [layer.self_attn for layer in model.model.layers]
    of_heads = [module for a in attentions for module in (a.q_proj, a.k_proj, a.v_proj)]
    torch_pruning.pruner.BasePruner(
        model,
        example_inputs=torch.arange(8)[None],
        importance=importance,
        pruning_ratio=ratios["hidden_size"],
        pruning_ratio_dict={
            linear: ratios["intermediate_size"]
            for mlp in mlps
            for linear in (mlp.gate_proj, mlp.up_proj)
        },
        ignored_layers=[model.lm_head, *of_heads],
        output_transform=lambda output: output.logits,
    ).step()
    config.hidden_size = model.lm_head.in_features
    config.intermediate_size = mlps[0].gate_proj.out_features
    model.lm_head.weight = model.model.embed_tokens.weight  # cut alike, but as two parameters


def measure(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row of a model that is cut by this importance of the peer."""
    source = open_source(options.source)
    model = load_model(source)
    model.config.use_cache = False
    if way == "magnitude":
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean")
    else:
        importance = torch_pruning.importance.GroupTaylorImportance()
        gradients(model, options)
    prune(model, importance)
    model.zero_grad()
    with TemporaryDirectory() as out:
        model.save_pretrained(out)
        load_tokenizer(source).save_pretrained(out)
        return row_of(out, texts_of(options), cut=CUT, way=f"{PEER}, {way}", seed=SEED)


def main() -> None:
    """Measure what has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="a folder of SmolLM2-135M")
    parser.add_argument("--name", default="smollm2", help="of the file of results")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--held-out", required=True, nargs="+")
    parser.add_argument("--held-out-tokens", type=int, default=16_384, help="of each text")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--ways", nargs="+", default=["magnitude", "taylor"])
    options = parser.parse_args()
    results = RESULTS / f"{options.name}.json"
    for way in options.ways:
        found = json.loads(results.read_text())
        if f"{PEER}, {way}" not in {row["way"] for row in found["rows"]}:
            found["rows"].append(measure(way, options))
            results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
