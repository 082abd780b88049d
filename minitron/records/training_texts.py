"""Training texts: the paragraphs of a card on how its model was pruned, fitted and trained.

States only numbers that minitron.json holds. Reads no file.

    training_texts(history, curve)   # "Pruning of `tiny`, ranked by paper scores on ...", ...
"""

from collections.abc import Mapping, Sequence

from minitron.records.card_texts import display_name, keeps_directions, loss_texts
from minitron.records.minitron_json import Record

_DISTANCES = {
    "forward_kl": "forward KL divergence",
    "reverse_kl": "reverse KL divergence",
    "jsd": "Jensen-Shannon divergence",
    "mse": "squared error of the logits",
    "cosine": "cosine distance of the logits",
}


def training_texts(
    history: Sequence[Record], curve: Sequence[Mapping[str, float]]
) -> tuple[str, ...]:
    """How the model was pruned and trained, one paragraph for each step."""
    paragraphs = []
    for step in history:
        if reason := step.get("search", {}).get("reason"):
            paragraphs.append(f"Sizes: `minitron {step['command']}` {reason}.")
        if "importance" in step:
            paragraphs.append(_importance(step))
        if "reconstruction" in step:
            paragraphs.append(_reconstruction(step))
        if "teacher" in step:
            paragraphs.append(_teacher(step))
        if "training" in step:
            paragraphs.append(_fit(step))
        if "distillation" in step:
            paragraphs.append(_short_distillation(step))
    losses = [point["eval_loss"] for point in curve if "eval_loss" in point]
    if len(losses) > 1:
        length = _held_out_seq_len(history[-1])
        windows = "" if length is None else f", in windows of {length:,} tokens"
        theirs = history[-1].get("teacher", {}).get("held_out_loss")
        beside = "" if theirs is None else f" The teacher has {theirs:.3f} on the same text."
        paragraphs.append(
            f"Loss on held-out text{windows}: {losses[0]:.3f} nats a token at the start, "
            f"{losses[-1]:.3f} at the end.{beside}"
        )
    if curve:
        paragraphs.append("The loss curve is in `training.jsonl`.")
    return tuple(paragraphs)


def _held_out_seq_len(record: Record) -> int | None:
    """Tokens in a window of the held-out text of a training; None where no record has it."""
    recorded: int | None = record.get("training", {}).get("held_out_seq_len")
    return recorded or record["recipe"].get("seq_len")


def _importance(record: Record) -> str:
    made_by, shares = record["importance"], record.get("share_of_importance_kept")
    if not record.get("kept"):
        return "Nothing was removed."
    on = (
        f" on {_text_of(made_by['tokens'], made_by['corpus'], record['source']['name'])}"
        if "tokens" in made_by and made_by.get("corpus") is not None
        else ""
    )
    method = made_by.get("scores", "given")
    of = display_name(record["source"]["name"])
    if keeps_directions(record) and set(record["kept"]) == {"hidden"}:
        return f"Pruning of `{of}` by its hidden size alone."
    ranked = f"Pruning of `{of}`, ranked by {method} scores{on}."
    if not shares or method == "random":  # a share of random numbers means nothing
        return ranked
    axes = [axis for axis in shares if axis != "hidden" or not keeps_directions(record)]
    kept = ", ".join(f"{shares[axis]:.1%} of {axis}" for axis in axes)
    return f"{ranked} Share of the score that is kept: {kept}." if kept else ranked


def _reconstruction(record: Record) -> str:
    done, of = record["reconstruction"], display_name(record["source"]["name"])
    losses = loss_texts(done["losses"])
    text = _text_of(done["tokens"], done["corpus"], record["source"]["name"])
    numbers = (
        f"{losses['pruned']} nats a token as it is cut, {losses['reconstructed']} with the fit, "
        f"{losses['source']} for `{of}`"
    )
    if not done["used"]:
        return (
            f"Not reconstructed: a fit to `{of}` on {text} did not help on its held-out part, so "
            f"the weights are as they were cut. Loss there: {numbers}."
        )
    return (
        f"Reconstructed without training: each linear is fitted by least squares to what `{of}` "
        f"computes on {text}, and used where it helps on the part that is held out"
        f"{_basis(record)}. Loss on the held-out part: {numbers}."
    )


def _basis(record: Record) -> str:
    """What a reconstruction kept of the residual stream, where it was cut."""
    before, kept = (record[side]["hidden_size"] for side in ("source", "target"))
    done = record["reconstruction"]
    if kept == before:
        return ""
    if done["hidden"] != "rotate":
        return f"; the residual stream keeps {kept:,} of its {before:,} channels"
    share = done.get("share_of_variance_kept")
    carry = "" if share is None else f", which carry {share:.1%} of its variance"
    return f"; the residual stream keeps its {kept:,} main directions of {before:,}{carry}"


def _fit(record: Record) -> str:
    training, recipe = record["training"], record["recipe"]
    sampler = record.get("teacher", record["source"])["name"]
    text = _text_of(training["corpus_tokens"], recipe["corpus"], sampler)
    start = f"the weights of `{display_name(record['source']['name'])}`"
    epochs = f"{training['epochs']:.2g} epoch{'' if training['epochs'] == 1 else 's'}"
    total = f", {training['tokens']:,} tokens in all" if "tokens" in training else ""
    return (
        f"Starts from {'random weights' if recipe.get('scratch') else start}: "
        f"{_steps(training['steps'])}, {epochs} of {text}{total}, peak "
        f"learning rate {recipe['learning_rate']:g}."
    )


def _short_distillation(record: Record) -> str:
    """The distillation that is a part of `minitron quickstart`."""
    made, teacher = record["distillation"], display_name(record["source"]["name"])
    return (
        f"Then distilled: {_steps(made['steps'])} on {_text_of(made['tokens'], 'self', teacher)}. "
        f"Teacher: `{teacher}`. Loss: {_DISTANCES['forward_kl']} between the predictions of both."
    )


def _steps(count: int) -> str:
    return f"{count:,} step" if count == 1 else f"{count:,} steps"


def _text_of(tokens: int, corpus: str, sampler: str) -> str:
    """So many tokens of a text; `self` is text that the model `sampler` generated."""
    if corpus == "self":
        return f"{tokens:,} tokens that `{display_name(sampler)}` generated (`self`)"
    if corpus == "random":
        return f"{tokens:,} random token ids"
    return f"{tokens:,} tokens of `{display_name(corpus)}`"


def _teacher(record: Record) -> str:
    teacher, recipe = record["teacher"], record["recipe"]
    temperature, ce_weight = recipe["temperature"], recipe["ce_weight"]
    softened = "" if temperature == 1 else f" at temperature {temperature:g}"
    hard = f", plus {ce_weight:g} times cross-entropy with the text" if ce_weight else ""
    distance = _DISTANCES.get(recipe["kind"], recipe["kind"])
    return (
        f"Teacher: `{display_name(teacher['name'])}` ({teacher['parameters']:,} parameters). Loss: "
        f"{distance} between the predictions of both{softened}{hard}."
    )
