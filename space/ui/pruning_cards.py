"""Cut cards: what a cut changes, before and after, and what came of one that was made."""

from minitron.space.jobs.catalog import Member
from minitron.space.jobs.comparing import Column
from minitron.space.jobs.measures import SAMPLES
from minitron.space.jobs.preview import WORDS, Cut, Sizes, command, out_name, python_lines
from minitron.space.jobs.pruning import Result
from minitron.space.ui.heat_map import heat_map, legend
from minitron.space.ui.html import Html, count, percent, size, tag

_AXES = {
    "hidden": "hidden channels",
    "ffn": "MLP neurons",
    "heads": "query heads",
    "layers": "layers",
}


def cut_card(cut: Cut) -> Html:
    """The numbers of a cut, and its heat map."""
    member, target = cut.member, cut.target
    now, then = member.inspection, cut.to_json()
    context = cut.timings.conditions.context
    rows = [
        (
            "Parameters",
            count(now.parameters),
            count(target.parameters),
            target.parameters / now.parameters,
            "Numbers in the weights, embeddings included; counted from the sizes.",
        ),
        (
            "Weights",
            size(now.bytes),
            size(then["bytes"]),
            then["bytes"] / now.bytes,
            f"Parameters in {now.dtype}, as the checkpoint stores them.",
        ),
        (
            "KV cache a token",
            size(now.kv_cache_bytes_per_token),
            size(then["kv_cache_bytes_per_token"]),
            then["kv_cache_bytes_per_token"] / now.kv_cache_bytes_per_token,
            f"Keys and values that each token leaves in memory, over all layers, in {now.dtype}.",
        ),
        (
            "Estimated speed",
            f"{then['before']['tokens_per_second_estimated']:.0f} tokens/s",
            f"{then['tokens_per_second_estimated']:.0f} tokens/s",
            then["tokens_per_second_estimated"] / then["before"]["tokens_per_second_estimated"],
            "One text at a time on this machine: layers and output embedding were timed at the "
            f"largest and smallest sizes with {context} tokens in the cache, and sizes between "
            "follow on a straight line.",
        ),
    ]
    return tag(
        "div",
        tag("div", *(_change(*row) for row in rows), class_="mt-changes"),
        _kept(cut),
        heat_map(cut),
        legend(),
        class_="mt-card",
    )


def _change(name: str, before: str, after: str, ratio: float, measured: str) -> Html:
    """A number before and after, with the share as a bar."""
    return tag(
        "div",
        tag("span", name, class_="mt-label"),
        tag("span", tag("b", after), tag("s", before), class_="mt-values"),
        tag(
            "span",
            tag("i", style=f"width:{min(100, 100 * ratio):.1f}%"),
            class_="mt-bar",
        ),
        tag("span", f"×{ratio:.2f}", class_="mt-ratio"),
        class_="mt-change",
        title=measured,
        data_name=name,
    )


def _kept(cut: Cut) -> Html:
    """The share of importance that stays, of every axis that is cut."""
    told = (
        "Of the summed scores of every part, those of the parts that stay; scores as in arXiv "
        f"2407.14679 §2.2, on {SAMPLES} sequences that the model sampled itself."
    )
    if not cut.shares:
        parts = [tag("span", "Nothing is cut yet: move a slider.", class_="mt-faint")]
    else:
        parts = [
            tag("span", tag("b", percent(share)), f" of {_AXES.get(axis, axis)}", class_="mt-chip")
            for axis, share in cut.shares.items()
        ]
    return tag(
        "p",
        tag("span", "Importance kept ", class_="mt-label"),
        *parts,
        class_="mt-kept-line",
        title=told,
    )


def progress_card(result: Result) -> Html:
    """What is being done."""
    return tag("div", tag("p", result.note, class_="mt-progress"), class_="mt-card mt-result")


def result_card(result: Result, texts: list[Column]) -> Html:
    """What came of it: losses before and after, and both models' words."""
    done = result.to_json()
    before, after = done["before"], done["after"]
    measured = f"On {done['evaluated_on']}; nats a token, lower is better."
    rows = [
        ("Loss", f"{before['loss']:.3f}", f"{after['loss']:.3f}", measured),
        ("Perplexity", f"{before['perplexity']:.1f}", f"{after['perplexity']:.1f}", "exp(loss)"),
        ("Parameters", f"{before['parameters']:,}", f"{after['parameters']:,}", "In the files."),
        ("Bytes", f"{before['bytes']:,}", f"{after['bytes']:,}", "Of the weights on disk."),
        *(
            (WORDS[key], f"{before[key]:,}", f"{after[key]:,}", "From config.json.")
            for key in WORDS
            if before[key] != after[key]
        ),
    ]
    member = result.cut.member
    return tag(
        "div",
        tag(
            "table",
            tag("thead", tag("tr", tag("th", ""), tag("th", member.name), tag("th", "pruned"))),
            tag(
                "tbody",
                *(
                    tag(
                        "tr",
                        tag("th", name, scope="row"),
                        tag("td", one),
                        tag("td", two),
                        title=how,
                    )
                    for name, one, two, how in rows
                ),
            ),
            class_="mt-table",
        ),
        tag(
            "p",
            f"Cut, evaluated and packed in {result.seconds:.1f} s. A cut model speaks poorly "
            "until it is retrained; minitron distill brings most of it back.",
            class_="mt-faint",
        ),
        tag(
            "div",
            *(
                tag(
                    "section",
                    tag("h4", column.key.label),
                    tag("div", column.text or "(nothing)", class_="mt-text mt-short"),
                    class_="mt-try",
                )
                for column in texts
            ),
            class_="mt-columns",
        ),
        class_="mt-card mt-result",
        data_state="done",
    )


def waiting_card() -> Html:
    """Before the first numbers."""
    told = "Measuring which parts of this model matter: a few seconds, the first time only."
    return tag("div", tag("p", told, class_="mt-progress"), class_="mt-card mt-plan")


def recipe_card(member: Member, sizes: Sizes, seq_len: int) -> Html:
    """The command and the Python lines that make the same model elsewhere."""
    out = out_name(member, sizes)
    parts = (
        ("Command", "mt-command", command(member, sizes, out, seq_len)),
        ("Python", "mt-python", python_lines(member, sizes, out, seq_len)),
    )
    return tag(
        "div",
        *(
            tag(
                "section",
                tag(
                    "header",
                    tag("h4", name),
                    tag("button", "Copy", type="button", class_="mt-copy", data_copy=text),
                    class_="mt-card-head",
                ),
                tag("pre", text, id=place, class_="mt-code", tabindex=0),
                class_="mt-card",
            )
            for name, place, text in parts
        ),
        class_="mt-columns",
    )
