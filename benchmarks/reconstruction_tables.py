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
    """SmolLM2-135M at three quarters and half of its parameters."""
    found = result("reconstruction/smollm2")
    if not found:
        return []
    source, texts = found["source"], list(found["source"]["losses"])
    rows = [
        [
            row["cut"],
            row["way"],
            f"{row['parameters'] / 1e6:.1f} M",
            *(f"{row['losses'][text]:.3f}" for text in texts),
        ]
        for row in found["rows"]
    ]
    whole = [f"{source['losses'][text]:.3f}" for text in texts]
    return [
        "A model of another maker, SmolLM2-135M, without training. Calibrated on "
        f"{found['calibration_tokens']:,} tokens of WikiText-2's training text; evaluated on "
        "WikiText-2's validation text and on books, which the calibration has not seen:",
        "",
        *markdown(
            ["cut", "way", "parameters", "WikiText-2", "books"],
            [["nothing", "", f"{source['parameters'] / 1e6:.1f} M", *whole], *rows],
        ),
        "",
    ]


def _text(losses: Sequence[float], sign: str = "") -> str:
    """A mean, with the standard deviation of several seeds."""
    if not losses:
        return ""
    spread = f" ± {stdev(losses):.4f}" if len(losses) > 1 else ""
    return f"{mean(losses):{sign}.4f}{spread}"
