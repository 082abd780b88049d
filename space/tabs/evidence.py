"""Evidence tab: the findings of evidence.json with their pictures, then all measurements, folded.

benchmarks/family_page.py writes evidence.json, with docs/family.md; nothing is computed here.
"""

import json
from pathlib import Path
from typing import Any

from minitron.errors import MinitronError
from minitron.records.minitron_json import FILE, read_record
from minitron.space.jobs.catalog import Catalog, CatalogModel
from minitron.space.ui.chart import dot_plots, line_chart
from minitron.space.ui.html import render

EVIDENCE = Path(__file__).parent.parent / "evidence.json"
_LOSS = "loss (nats a token)"  # a column of minitron.json


def evidence_tab(catalog: Catalog, path: Path = EVIDENCE) -> str:
    """The HTML of the whole tab."""
    evidence = json.loads(path.read_text(encoding="utf-8"))
    sections = [_with_charts(section) for section in evidence["sections"]]
    findings = [section for section in sections if section.get("finding")]
    others = [section for section in sections if not section.get("finding")]
    return render(
        "evidence", rule=evidence["rule"], findings=findings, others=[*others, _models(catalog)]
    )


def _with_charts(section: dict[str, Any]) -> dict[str, Any]:
    plots = dot_plots(section.get("plots", ()))
    chart = {"chart": line_chart(section["chart"])} if "chart" in section else {}
    return {**section, "plots": plots, **chart}


def _models(catalog: Catalog) -> dict[str, Any]:
    head = ["model", "parameters", "hidden", "MLP", "heads / KV", "layers", "held-out loss"]
    rows = [head]
    for model in catalog.models:
        sizes, loss = model.inspection, recorded_loss(model)
        rows.append(
            [
                model.name,
                f"{sizes.parameters:,}",
                f"{sizes.hidden_size:,}",
                f"{sizes.intermediate_size:,}",
                f"{sizes.num_attention_heads} / {sizes.num_key_value_heads}",
                str(sizes.num_hidden_layers),
                "" if loss is None else f"{loss:.4f}",
            ]
        )
    explanation = (
        "Sizes as `minitron inspect` prints them; loss in nats per token, from minitron.json."
    )
    return {
        "title": "The models of this Space",
        "explanation": explanation,
        "table": rows,
        "plots": [],
    }


def recorded_loss(model: CatalogModel) -> float | None:
    """The held-out loss in a model's minitron.json; None where there is none."""
    path = model.open().companions.file(FILE)
    if path is None:
        return None
    try:
        results = read_record(path.parent).get("results") or {}
    except MinitronError:
        return None
    if _LOSS not in results.get("columns", ()):
        return None
    column = results["columns"].index(_LOSS)
    rows = [row for row in results["rows"] if row["name"] == model.name]
    return float(rows[0]["values"][column]) if rows else None
