"""Compare the pruning of `--scores modelopt` with that of NVIDIA's ModelOpt on the same models.

Two models are pruned on all axes at once, on the same token ids in float32: a Nemotron whose units
differ by construction, and the embedded teacher `tiny`. ModelOpt's `mcore_minitron` prunes them in
Megatron-core on a CPU, and minitron prunes them. The units that ModelOpt keeps are found by
comparing its pruned weights with the whole model; its scores are those that it sorts by. Reported
per axis:

- score_difference: the largest relative difference of our scores from ModelOpt's;
- kept_alike: the share of ModelOpt's kept units that we keep too; kept_by_paper: the same with our
  default scores;
- sizes_alike: the share of possible sizes of the axis at which the kept units are the same in every
  layer;
- tied: the number of kept units whose score equals that of a removed one; kept_alike_unstable: see
  below.

Also reported: the largest difference between the logits of both whole models and of both pruned
models, and the largest logit.

In some layers of `tiny` half of the neurons are never active on the text that it generates. They
all have the score 0, and some have to be kept. ModelOpt chooses by an unstable `argsort`, whose
result depends on the processor; we keep the lower index. ModelOpt therefore runs twice, unchanged
(kept_alike_unstable) and with a stable sort (all other values).

ModelOpt 0.43 runs without Transformer Engine, and so without a GPU. In a separate environment:

    pip install torch==2.13.0 && pip install -c constraints.txt -e .
    pip install -c constraints.txt nvidia-modelopt==0.43.0 megatron-core==0.16.1 requests
    python benchmarks/against_modelopt.py
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

import minitron
from minitron.conversion.megatron_names import megatron_tensors
from minitron.model.architecture import Architecture
from minitron.model.importance import Importance
from minitron.model.plan import choose_plan
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source
from minitron.text.sampling import self_corpus
from modeling_nemotron import NemotronConfig, NemotronForCausalLM

RESULTS = Path(__file__).parent / "results" / "against_modelopt.json"
AXES = ("hidden", "ffn", "heads", "layers")
SEED, SAMPLES, SEQ_LEN = 0, 64, 128
Sizes = dict[str, Any]
PLANTED: Sizes = {
    "vocab_size": 301,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 5,
    "num_attention_heads": 12,
    "num_key_value_heads": 3,
    "head_dim": 16,
}
TARGETS: dict[str, Sizes] = {
    "planted": {
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_attention_heads": 6,
        "num_hidden_layers": 4,
    },
    "tiny": {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_attention_heads": 4,
        "num_hidden_layers": 5,
    },
}
Scores = dict[str, torch.Tensor]  # by axis, (rows, units): a row per layer, or one for all layers
Kept = dict[str, list[set[int]]]  # by axis, for every row


@dataclass(frozen=True)
class Outcome:
    """The result of minitron or ModelOpt for a model."""

    scores: Scores
    kept: Kept
    logits: torch.Tensor  # of the whole model (samples, seq_len, vocab)
    pruned_logits: torch.Tensor


def plant(folder: Path) -> None:
    """Write a random Nemotron whose channels, neurons, heads and layers differ in scale."""
    torch.manual_seed(SEED)
    config = NemotronConfig(max_position_embeddings=SEQ_LEN, pad_token_id=None, **PLANTED)
    model: Any = NemotronForCausalLM(config)

    def spread(*shape: int) -> torch.Tensor:
        return torch.randn(shape).mul(0.5).exp()

    with torch.no_grad():
        for parameter in model.parameters():  # of norms too: gains of 1 + 0.15, and biases
            parameter.copy_(torch.randn_like(parameter) * 0.15)
        model.model.embed_tokens.weight.mul_(spread(PLANTED["hidden_size"]))
        for layer in model.model.layers:
            head_sizes = spread(PLANTED["num_attention_heads"], 1, 1)
            q_proj = layer.self_attn.q_proj.weight
            q_proj.copy_(
                (q_proj.unflatten(0, (-1, PLANTED["head_dim"])) * head_sizes).flatten(0, 1)
            )
            layer.mlp.up_proj.weight.mul_(spread(PLANTED["intermediate_size"], 1))
            layer.mlp.down_proj.weight.mul_(spread(1))
    model.save_pretrained(folder)


def token_ids(source: str) -> np.ndarray:
    """Token ids (samples, seq_len) that the model generates."""
    model = load_model(open_source(source), dtype=torch.float32)
    return self_corpus(model, seq_len=SEQ_LEN, samples=SAMPLES, seed=SEED).sequences


def of_minitron(source: str, ids: Path, sizes: Sizes, work: Path) -> Outcome:
    """Measure, prune and run a model with minitron."""
    scores = importance_of_model(source, ids, work, "modelopt")
    minitron.prune(source, str(work / "pruned"), importance=str(work / "modelopt"), **sizes)

    def logits(name: str) -> torch.Tensor:
        model = load_model(open_source(name), dtype=torch.float32)
        with torch.inference_mode():
            result: torch.Tensor = model(input_ids=read_ids(ids), use_cache=False).logits
        return result

    return Outcome(
        {axis: torch.atleast_2d(scores.axis(axis)) for axis in AXES},
        kept_by_plan(scores, source, sizes),
        logits(source),
        logits(str(work / "pruned")),
    )


def importance_of_model(
    source: str, ids: Path, work: Path, scores: Literal["paper", "modelopt"]
) -> Importance:
    """Our importance, which is also saved in `work`."""
    return minitron.measure_importance(
        source, str(work / scores), corpus=str(ids), scores=scores, compute_dtype="float32"
    )


def kept_by_plan(scores: Importance, source: str, sizes: Sizes) -> Kept:
    """The units that our plan keeps; on width axes, of every layer, removed ones too."""
    whole = open_source(source).architecture
    layers = choose_plan(scores, whole, whole.resized(**sizes)).layers
    widths = {size: value for size, value in sizes.items() if size != "num_hidden_layers"}
    width = choose_plan(scores, whole, whole.resized(**widths))
    return {
        "hidden": [set(width.hidden)],
        "ffn": [set(row) for row in width.ffn],
        "heads": [set(row) for row in width.heads],
        "layers": [set(layers)],
    }


def of_modelopt(source: str, ids: Path, sizes: Sizes, *, is_stable: bool) -> Outcome:
    """Measure, prune and run a model with `modelopt.torch.prune` in Megatron-core."""
    whole = open_source(source).architecture
    with one_process(), stable_sort() if is_stable else nullcontext():
        import modelopt.torch.prune as mtp
        from modelopt.torch.prune.plugins.mcore_minitron import get_mcore_minitron_config

        model = megatron_model(source)
        original = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        tokens = read_ids(ids)
        batches = tokens[:, None]  # of one sequence, as in ModelOpt's examples
        logits = run(model, tokens)
        divisors = {"hidden_size_divisor": 1, "ffn_hidden_size_divisor": 1, "num_layers_divisor": 1}
        with redirect_stdout(StringIO()):  # it prints every score
            pruned, state = mtp.prune(
                model,
                mode=[("mcore_minitron", get_mcore_minitron_config(**divisors))],
                constraints={"export_config": in_megatron_words(sizes)},
                dummy_input=None,
                config={"forward_loop": lambda dynamic: [run(dynamic, batch) for batch in batches]},
            )
        scores = scores_of(state, whole)
        kept = kept_by_modelopt(
            dict(pruned.named_parameters()), original, whole.resized(**sizes), whole
        )
        check_sorted_by(scores, kept, source, sizes)
        return Outcome(scores, kept, logits, run(pruned, tokens))


def check_sorted_by(scores: Scores, kept: Kept, source: str, sizes: Sizes) -> None:
    """Raise if the units were not kept by the scores that were read."""
    hidden, layers = scores["hidden"][0], scores["layers"][0]
    widths = {"ffn": scores["ffn"], "heads": scores["heads"]}
    best = kept_by_plan(Importance({}, hidden=hidden, layers=layers, **widths), source, sizes)
    for axis, rows in kept.items():
        for row, units in enumerate(rows):
            kept_scores, wanted = (
                scores[axis][row][sorted(chosen)].sort().values
                for chosen in (units, best[axis][row])
            )
            if units and not torch.equal(kept_scores, wanted):
                raise SystemExit(f"ModelOpt's scores of {axis} are not what it kept them by.")


@contextmanager
def stable_sort() -> Iterator[None]:
    """Make `argsort` stable: of equal values the lower index is first."""
    argsort = torch.Tensor.argsort

    def stable(values: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return argsort(values, **{**kwargs, "stable": True})

    with patch.object(torch.Tensor, "argsort", stable):
        yield


class ApexLayerNorm:
    """The Apex kernel that Megatron's norm calls, in torch."""

    @staticmethod
    def forward(
        states: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor, shape: Any, epsilon: float
    ) -> torch.Tensor:
        return torch.nn.functional.layer_norm(states, shape, gain, bias, epsilon)

    apply = forward


@contextmanager
def one_process() -> Iterator[None]:
    """Megatron's process groups in a single process, without CUDA and Apex."""
    from megatron.core import parallel_state
    from megatron.core.fusions import fused_layer_norm
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(CudaRNGStatesTracker, "fork", lambda *_: nullcontext()),
        patch.object(torch.cuda, "current_device", lambda: "cpu"),
        patch.object(torch.Tensor, "cuda", lambda tensor: tensor),
        # ModelOpt gathers a scalar from each process, which gloo refuses and NCCL does not.
        patch.object(dist, "all_gather_into_tensor", lambda all_, own, **_: all_.copy_(own)),
        patch.object(fused_layer_norm, "HAVE_FUSED_LAYER_NORM", True),
        patch.object(fused_layer_norm, "FusedLayerNormAffineFunction", ApexLayerNorm, create=True),
    ):
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        yield
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def in_megatron_words(sizes: Sizes) -> Sizes:
    """Sizes under the names of Megatron's config."""
    names = {"intermediate_size": "ffn_hidden_size", "num_hidden_layers": "num_layers"}
    return {names.get(name, name): size for name, size in sizes.items()}


def megatron_model(source: str) -> Any:
    """Megatron's GPT model with the weights of a Nemotron, in float32."""
    from megatron.core.fusions.fused_layer_norm import FusedLayerNorm
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig

    opened = open_source(source)
    whole = opened.architecture
    config = TransformerConfig(
        num_layers=whole.num_hidden_layers,
        hidden_size=whole.hidden_size,
        ffn_hidden_size=whole.intermediate_size,
        num_attention_heads=whole.num_attention_heads,
        num_query_groups=whole.num_key_value_heads,
        kv_channels=whole.head_dim,
        activation_func=lambda values: torch.relu(values).square(),
        add_bias_linear=False,
        layernorm_zero_centered_gamma=True,
        layernorm_epsilon=opened.config["norm_eps"],
        hidden_dropout=0.0,
        attention_dropout=0.0,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        use_cpu_initialization=True,
    )
    layer = get_gpt_layer_local_spec()
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = FusedLayerNorm
    layers = [layer] * whole.num_hidden_layers
    model = GPTModel(
        config=config,
        transformer_layer_spec=TransformerBlockSubmodules(layers, layer_norm=FusedLayerNorm),
        vocab_size=whole.vocab_size,
        max_sequence_length=SEQ_LEN,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_percent=opened.config["partial_rotary_factor"],
        parallel_output=False,
    ).eval()
    stored = megatron_tensors(opened.tensors, whole, padded_vocab_size=whole.vocab_size)
    for name, weight in model.named_parameters():
        weight.data.copy_(stored[name].read())
    return model


def run(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits (samples, length, vocab)."""
    length = ids.shape[1]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)  # True is hidden
    with torch.no_grad():
        result: torch.Tensor = model(ids, torch.arange(length).expand_as(ids), mask)
    return result


def scores_of(state: dict[str, Any], whole: Architecture) -> Scores:
    """The scores that ModelOpt's estimators compute from the sums of its hooks."""
    layers = range(whole.num_hidden_layers)
    [sums] = state["activations_per_rank"]

    def rows(module: str) -> torch.Tensor:
        return torch.stack([sums[f"decoder.layers.{layer}.{module}"] for layer in layers]).sqrt()

    channels = rows("self_attention").unflatten(-1, (whole.num_attention_heads, -1))
    norms = torch.stack([squares.sqrt() for squares in sums[""].values()])
    scores = {
        "hidden": norms.sum(0, keepdim=True),
        "ffn": rows("mlp"),
        "heads": torch.linalg.vector_norm(channels, dim=-1),
        "layers": torch.tensor([[float(state["layer_scores"][layer + 1]) for layer in layers]]),
    }
    return {axis: tensor.double() for axis, tensor in scores.items()}


def kept_by_modelopt(
    pruned: dict[str, torch.Tensor],
    original: dict[str, torch.Tensor],
    target: Architecture,
    whole: Architecture,
) -> Kept:
    """The units of the whole model that the pruned model has; without rows of removed layers."""
    embedding = "embedding.word_embeddings.weight"
    hidden = places(pruned[embedding].T, original[embedding].T)

    def name(layer: int, module: str) -> str:
        return f"decoder.layers.{layer}.{module}.weight"

    def biases(weights: dict[str, torch.Tensor], count: int) -> torch.Tensor:
        return torch.stack(
            [weights[f"decoder.layers.{layer}.pre_mlp_layernorm.bias"] for layer in range(count)]
        )

    layers = places(
        biases(pruned, target.num_hidden_layers),
        biases(original, whole.num_hidden_layers)[:, hidden],
    )
    assert layers == sorted(layers)
    ffn: list[set[int]] = [set() for _ in range(whole.num_hidden_layers)]
    heads: list[set[int]] = [set() for _ in range(whole.num_hidden_layers)]
    for now, before in enumerate(layers):
        neurons = pruned[name(now, "mlp.linear_fc1")]
        ffn[before] = set(places(neurons, original[name(before, "mlp.linear_fc1")][:, hidden]))
        qkv = name(now, "self_attention.linear_qkv"), name(before, "self_attention.linear_qkv")
        queries = queries_of(pruned[qkv[0]], target)
        heads[before] = set(places(queries, queries_of(original[qkv[1]][:, hidden], whole)))
    return {"hidden": [set(hidden)], "ffn": ffn, "heads": heads, "layers": [set(layers)]}


def queries_of(qkv: torch.Tensor, sizes: Architecture) -> torch.Tensor:
    """The weights of each query head, from the fused tensor (heads, head_dim * hidden)."""
    size = sizes.heads_per_group
    queries: torch.Tensor = qkv.unflatten(0, (-1, size + 2, sizes.head_dim))[:, :size]
    return queries.flatten(0, 1).flatten(1)


def places(part: torch.Tensor, whole: torch.Tensor) -> list[int]:
    """The index in `whole` of each row of `part`; each must be found once."""
    rows = {row.detach().numpy().tobytes(): place for place, row in enumerate(whole.contiguous())}
    assert len(rows) == len(whole)
    return [rows[row.detach().numpy().tobytes()] for row in part.contiguous()]


def compared(
    ours: Outcome, theirs: Outcome, unstable: Kept, paper: Kept, group: int
) -> dict[str, Any]:
    """The differences of both results; `group` query heads share a KV head."""
    axes = {}
    for axis in AXES:
        a, b = ours.scores[axis], theirs.scores[axis]
        rows = [row for row, kept in enumerate(theirs.kept[axis]) if kept]
        axes[axis] = {
            "kept": len(theirs.kept[axis][rows[0]]),
            "of": a.shape[1],
            "score_difference": float(((a - b).abs() / b.abs().clamp(min=1e-30)).max()),
            "kept_alike": overlap(ours.kept[axis], theirs.kept[axis], rows),
            "sizes_alike": sizes_alike(*(grouped(scores, axis, group) for scores in (a, b))),
            "kept_by_paper": overlap(paper[axis], theirs.kept[axis], rows),
            "tied": sum(tied(b[row], theirs.kept[axis][row]) for row in rows),
            "kept_alike_unstable": overlap(ours.kept[axis], unstable[axis], rows),
        }
    return {
        "axes": axes,
        "largest_logit": float(theirs.logits.abs().max()),
        "logit_difference": float((ours.logits - theirs.logits).abs().max()),
        "largest_pruned_logit": float(theirs.pruned_logits.abs().max()),
        "pruned_logit_difference": float((ours.pruned_logits - theirs.pruned_logits).abs().max()),
    }


def tied(scores: torch.Tensor, kept: set[int]) -> int:
    """The number of kept units whose score equals that of a removed one."""
    gone = set(scores[sorted(set(range(len(scores))) - kept)].tolist())
    return sum(score in gone for score in scores[sorted(kept)].tolist())


def overlap(ours: list[set[int]], theirs: list[set[int]], rows: list[int]) -> float:
    """The share of their kept units that we keep too."""
    alike = sum(len(ours[row] & theirs[row]) for row in rows)
    return alike / sum(len(theirs[row]) for row in rows)


def grouped(scores: torch.Tensor, axis: str, group: int) -> torch.Tensor:
    """Scores with a row per set of units that are ranked together."""
    return scores.unflatten(1, (-1, group)).flatten(0, 1) if axis == "heads" else scores


def sizes_alike(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The share of counts from 1 to units - 1 with the same highest scores in every row."""
    orders = [scores.argsort(dim=1, descending=True, stable=True) for scores in (ours, theirs)]
    counts = range(1, ours.shape[1])

    def agree(count: int) -> bool:
        pairs = zip(*(order[:, :count].tolist() for order in orders), strict=True)
        return all(set(one) == set(other) for one, other in pairs)

    return sum(map(agree, counts)) / len(counts)


def read_ids(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(path)).long()


def comparison(name: str, work: Path) -> dict[str, Any]:
    """Prune one model with both and compare the results."""
    source, sizes = name, TARGETS[name]
    if name == "planted":
        source = str(work / "planted")
        plant(Path(source))
    ids = work / "ids.npy"
    np.save(ids, token_ids(source))
    unstable = of_modelopt(source, ids, sizes, is_stable=False).kept
    theirs = of_modelopt(source, ids, sizes, is_stable=True)
    ours = of_minitron(source, ids, sizes, work)
    paper = kept_by_plan(importance_of_model(source, ids, work, "paper"), source, sizes)
    whole = open_source(source).architecture
    return {
        "model": name,
        "sizes": {size: getattr(whole, size) for size in PLANTED},
        "target": sizes,
        "parameters": [whole.parameters, whole.resized(**sizes).parameters],
        "ids": {"samples": SAMPLES, "seq_len": SEQ_LEN, "sampled_by": "the model", "seed": SEED},
        **compared(ours, theirs, unstable, paper, whole.heads_per_group),
    }


def main() -> None:
    """Compare on both models, print a table of each and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    for name in TARGETS:
        with tempfile.TemporaryDirectory() as work:
            rows.append(comparison(name, Path(work)))
        print(table(rows[-1]))
    packages = ("torch", "nvidia-modelopt", "megatron-core", "transformers")
    results = {"versions": {name: version(name) for name in packages}, "models": rows}
    options.out.write_text(json.dumps(results, indent=2) + "\n")


def table(row: dict[str, Any]) -> str:
    """The printed table of a model."""
    lines = [f"{row['model']}, {row['parameters'][0]:,} to {row['parameters'][1]:,} parameters"]
    lines.append("| axis | kept | largest score difference | kept alike | sizes alike | by paper |")
    lines.append("|---|---:|---:|---:|---:|---:|")
    percent: Callable[[float], str] = "{:.1%}".format
    for axis, values in row["axes"].items():
        shares = (values[key] for key in ("kept_alike", "sizes_alike", "kept_by_paper"))
        cells = [f"{values['kept']} of {values['of']}", f"{values['score_difference']:.1e}"]
        lines.append(f"| {axis} | " + " | ".join([*cells, *map(percent, shares)]) + " |")
    for which in ("", "pruned_"):
        apart, largest = row[f"{which}logit_difference"], row[f"largest_{which}logit"]
        lines.append(
            f"{which.strip('_') or 'whole'}: logits {apart:.1e} apart, up to {largest:.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
