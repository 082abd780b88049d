"""The section of docs/family.md on models that are reconstructed and not trained, or briefly.

Read from benchmarks/results/family/start and benchmarks/results/reconstruction; what has no result
file is left out.

    reconstruction_lines(draw_starts)
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from evidence import markdown
from family_evidence import RESULTS, family_runs, result

WAYS = {
    "cut": "as it is cut",
    "select": "reconstructed, by channels",
    "rotate": "reconstructed, by directions",
}
_AXES = {
    "hidden": "hidden_size 256 to 160",
    "ffn": "intermediate_size 1,024 to 512",
    "heads": "num_attention_heads 8 to 4",
    "layers": "num_hidden_layers 6 to 4",
    "half": "all, to the sizes of tiny-half",
}
_SIZES = {
    "hidden_size": "hidden",
    "intermediate_size": "MLP",
    "num_attention_heads": "heads",
    "num_key_value_heads": "KV heads",
    "num_hidden_layers": "layers",
}
Starts = Mapping[tuple[str, int, float], Sequence[float]]  # way, tokens, rate: losses by seed
Curves = Mapping[str, Mapping[int, float]]  # a way's loss by tokens


def reconstruction_lines(draw: Callable[[Curves], str]) -> list[str]:
    """The section, or nothing where no start was measured; `draw` returns a picture's path."""
    starts = _starts()
    if not starts:
        return []
    return [
        "## Reconstructed, before any training",
        "",
        "`prune` fits every linear of the smaller model to its source by least squares on the "
        "calibration text (`--reconstruct`), and cuts the hidden size by channels (`--hidden "
        "select`) or by directions of the residual stream (`--hidden rotate`). The model has the "
        "sizes of `tiny-half`; importance and fit have 65,536 tokens of text. Measured by "
        "`python benchmarks/family.py --only start`.",
        "",
        *_tokens_table(starts, draw),
        *_rates_table(starts),
        *_axes_table(),
        *_scores_table(),
        *_calibration_table(),
        *_smollm2_table(),
    ]


def _starts() -> Starts:
    losses: dict[tuple[str, int, float], list[float]] = defaultdict(list)
    for source, run in family_runs("start/*"):
        way = source.removeprefix("start/").partition("-")[0]
        rate = run.get("options", {}).get("learning_rate", 0.0)
        losses[way, run["tokens"], rate].append(run["loss"])
    return losses


def _tokens_table(starts: Starts, draw: Callable[[Curves], str]) -> list[str]:
    """Loss by way and training tokens, at the best rate of those with most seeds; its picture."""
    best: dict[tuple[str, int], tuple[float, Sequence[float]]] = {}
    for (way, tokens, rate), losses in starts.items():
        _, least = best.get((way, tokens), (0.0, ()))
        if (len(losses), -mean(losses)) > (len(least), -mean(least or [0.0])):
            best[way, tokens] = rate, losses
    counts = sorted({tokens for _, tokens in best})
    rows = []
    for way, name in WAYS.items():
        cells = []
        for tokens in counts:
            rate, losses = best.get((way, tokens), (0.0, ()))
            rated = f", {rate:g}" if rate else ""
            cells.append(f"{_text(losses)} ({len(losses)}{rated})" if losses else "")
        rows.append([name, *cells])
    curves = {way: {t: mean(best[way, t][1]) for t in counts if (way, t) in best} for way in WAYS}
    return [
        *markdown(["tokens of distillation", *(f"{tokens:,}" for tokens in counts)], rows),
        "",
        "In brackets: seeds, and the peak of the learning rate.",
        "",
        f"![Held-out loss against tokens of distillation, from each start]({draw(curves)})",
        "",
    ]


def _rates_table(starts: Starts) -> list[str]:
    """Loss after 65,536 tokens by the peak of the learning rate."""
    rates = sorted({rate for way, tokens, rate in starts if tokens == 65_536})
    rows = []
    for way, name in WAYS.items():
        found = {rate: starts[way, 65_536, rate][0] for rate in rates}
        least = min(found.values())
        texts = {rate: f"{loss:.4f}" for rate, loss in found.items()}
        cells = [f"**{texts[r]}**" if found[r] == least else texts[r] for r in rates]
        rows.append([name, *cells])
    return [
        "A good start wants a lower rate. After 65,536 tokens, one seed, by the peak of the "
        "learning rate:",
        "",
        *markdown(["", *(f"{rate:g}" for rate in rates)], rows),
        "",
    ]


def _axes_table() -> list[str]:
    """Each axis alone, without training."""
    found = result("reconstruction/tiny")
    if not found:
        return []
    [source] = found["source"]["losses"].values()
    rows = [[_AXES[cut], *cells] for cut, cells in _by_way(found["rows"]) if cut in _AXES]
    return [
        f"One axis at a time, without training, above the teacher's {source:.4f} on 73,728 "
        "held-out tokens (`python benchmarks/reconstruction.py`):",
        "",
        *markdown(["", *WAYS.values()], [_above(row, source) for row in rows]),
        "",
    ]


def _by_way(rows: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, list[list[float]]]]:
    """For each cut the losses of each way, by seed, on the first text."""
    cuts: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cuts[row["cut"]][row["way"]].append(next(iter(row["losses"].values())))
    for cut, ways in cuts.items():
        yield cut, [ways.get(way, []) for way in ("as it is cut", "select", "rotate")]


def _above(row: list[Any], source: float) -> list[str]:
    return [row[0], *(_text([loss - source for loss in losses], "+") for losses in row[1:])]


def _scores_table() -> list[str]:
    """The teacher cut by each kind of scores and reconstructed by channels."""
    files = (RESULTS / "reconstruction").glob("scores-*.json")
    found = [result(f"reconstruction/{path.stem}") for path in sorted(files)]
    if not found:
        return []
    [source] = found[0]["source"]["losses"].values()
    by_kind: dict[str, dict[str, list[float]]] = {}
    for one in found:
        cuts = by_kind.setdefault(one["scores"], defaultdict(list))
        for row in one["rows"]:
            cuts[row["cut"]].append(next(iter(row["losses"].values())) - source)
    kinds = [kind for kind in ("paper", "contribution", "obs") if kind in by_kind]
    rows = [
        [name, *(_text(by_kind[kind].get(cut, []), "+") for kind in kinds)]
        for cut, name in _AXES.items()
        if any(cut in cuts for cuts in by_kind.values())
    ]
    seeds = len({row["seed"] for one in found for row in one["rows"]})
    return [
        f"By what neurons, heads and channels are ranked (`--scores`), reconstructed by channels, "
        f"without training, above the teacher's {source:.4f}; {seeds} seeds (`python "
        "benchmarks/reconstruction.py --ways select --name scores-obs --scores obs`):",
        "",
        *markdown(["", *(f"`{kind}`" for kind in kinds)], rows),
        "",
    ]


def _calibration_table() -> list[str]:
    """The half by the number of calibration tokens."""
    found = [result(f"reconstruction/{path.stem}") for path in _calibrations()]
    found = sorted([one for one in found if one["rows"]], key=lambda one: one["calibration_tokens"])
    if not found:
        return []
    rows = []
    for one in found:
        ways = {row["way"]: next(iter(row["losses"].values())) for row in one["rows"]}
        cells = [f"{ways[way]:.4f}" if way in ways else "" for way in ("select", "rotate")]
        rows.append([f"{one['calibration_tokens']:,}", *cells])
    head = ["calibration tokens", WAYS["select"], WAYS["rotate"]]
    text = "The half by the number of calibration tokens, one seed, without training:"
    return [text, "", *markdown(head, rows), ""]


def _calibrations() -> list[Any]:
    return sorted((RESULTS / "reconstruction").glob("calibration-*.json"))


def _smollm2_table() -> list[str]:
    """SmolLM2-135M at three quarters and half of its parameters, by calibration text and scores."""
    files = sorted((RESULTS / "reconstruction").glob("smollm2*.json"))
    found = [result(f"reconstruction/{path.stem}") for path in files]
    if not found:
        return []
    whole, sizes = found[0]["source"], found[0]["sizes"]
    added = {
        row["cut"][:4]: _added(row, whole)
        for row in found[0]["rows"]
        if row["cut"].endswith("% by width") and row["way"] == WAYS["cut"]
    }
    rows = [(row, each) for each in found for row in each["rows"]]
    rows.sort(key=lambda pair: list(sizes).index(pair[0]["cut"]))
    cells = []
    for row, each in rows:
        today = added.get(row["cut"][:4], ())
        shares = [f"{x / y:.2f}" for x, y in zip(_added(row, whole), today, strict=False)]
        cells.append([*_smollm2_row(row, each), " and ".join(shares)])
    head = ["cut", "kept", "way", "calibration", "parameters", "WikiText-2", "books", "added"]
    return [
        "A model of another maker, SmolLM2-135M (hidden_size 576, intermediate_size 1,536, 9 query "
        "and 3 KV heads, 30 layers; the input embedding is the output embedding too). Evaluated on "
        "16,384 tokens each of WikiText-2's validation text and of books, which no calibration has "
        "seen; a calibration on WikiText-2 has seen no book at all. The last column is the loss "
        "above the whole model's on both texts, as a share of that of the cut by width without "
        "reconstruction. Measured by `python benchmarks/reconstruction.py`, the peer by "
        "`python benchmarks/reconstruction_peer.py`:",
        "",
        *markdown(head, [["nothing", "", "", "", *_smollm2_numbers(whole), ""], *cells]),
        "",
        "The hidden size costs most here. By channels, tied embeddings stay as they are cut: the "
        "same matrix is the input's and the output's. By directions the output has a matrix of its "
        "own, and the model more parameters. The MLP alone, cut to the same number of parameters, "
        "keeps the embedding whole: once it is reconstructed, a third of the added loss is left on "
        "text of the calibration's kind, and half on books. The peer cuts hidden_size and "
        "intermediate_size to the sizes of the cut by width, by the magnitude of weights as in its "
        "example. Not measured yet: the peer by its Taylor importance, the half by depth and by "
        "both, the half after distillation, and a calibration on both kinds of text.",
        "",
    ]


def _added(row: Mapping[str, Any], whole: Mapping[str, Any]) -> list[float]:
    """The losses above the whole model's."""
    return [loss - whole["losses"][text] for text, loss in row["losses"].items()]


def _smollm2_row(row: Mapping[str, Any], of: Mapping[str, Any]) -> list[str]:
    """The cells of a row of one file of results."""
    kept = ", ".join(f"{_SIZES[key]} {size:,}" for key, size in of["sizes"][row["cut"]].items())
    way = WAYS.get(row["way"], row["way"])
    if tokens := row.get("tokens"):
        way += f", distilled on {tokens:,} tokens"
    text = "WikiText-2" if len(of["corpus"]) == 1 else "WikiText-2 and books"
    scores = "" if of["scores"] == "paper" else f", {of['scores']}"
    read = (
        "" if "random" in way or "magnitude" in way else f"{of['calibration_tokens']:,} of {text}"
    )
    return [row["cut"], kept, way, read + scores, *_smollm2_numbers(row)]


def _smollm2_numbers(row: Mapping[str, Any]) -> list[str]:
    """The parameters and losses of a row."""
    return [f"{row['parameters'] / 1e6:.1f} M", *(f"{x:.3f}" for x in row["losses"].values())]


def _text(losses: Sequence[float], sign: str = "") -> str:
    """A mean, with the standard deviation of several seeds."""
    if not losses:
        return ""
    spread = f" ± {stdev(losses):.4f}" if len(losses) > 1 else ""
    return f"{mean(losses):{sign}.4f}{spread}"
