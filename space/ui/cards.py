"""Cards: the texts and numbers of an answer, a preview, a result. The templates write the HTML."""

from collections.abc import Iterator
from dataclasses import dataclass

from minitron.space.jobs.comparing import MEASURED, Column
from minitron.space.jobs.decoding import TokenCheck
from minitron.space.jobs.distilling import STEPS, Lesson
from minitron.space.jobs.measures import HELD_OUT, SAMPLES, SEQ_LEN
from minitron.space.jobs.preview import (
    LABELS,
    Preview,
    Sizes,
    command,
    next_command,
    python_lines,
)
from minitron.space.jobs.pruning import PruningResult
from minitron.space.ui.heat_map import heat_maps
from minitron.space.ui.html import byte_size, count, percent, render

_UNKNOWN = "–"
_LEAD = 160  # characters of a long prompt, before its answer
_STAT_NAMES = dict(
    zip(
        MEASURED,
        ("tokens / s", "first token", "parameters", "weights", "KV / token", "agreement"),
        strict=True,
    )
)
_AXES = {"hidden": "hidden channels", "ffn": "MLP neurons", "heads": "query heads"}


@dataclass(frozen=True)
class Stat:
    """A number with its name, and how it is measured."""

    name: str
    value: str
    measured: str


@dataclass(frozen=True)
class AnswerPart:
    """A part of a text; one with a hint is marked."""

    text: str
    hint: str = ""
    colour: str = ""


@dataclass(frozen=True)
class AnswerCard:
    """A column of the Compare tab; one without a state waits for a comparison."""

    name: str
    role: str
    stats: tuple[Stat, ...]
    hint: str
    placeholder: str
    state: str
    lead: str  # the end of the prompt, which the text continues
    text: str
    parts: tuple[AnswerPart, ...]
    is_at_limit: bool
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """A number of a model before and after, and how it is measured."""

    name: str
    before: str
    after: str
    measured: str
    ratio: float | None = None  # None where a number is not known
    has_bar: bool = True  # a part of the whole, not a speed that grows


def answer_cards(columns: list[Column], *, are_running: bool = True) -> str:
    """The answers so far; without a running comparison, the others are empty."""
    return render("answers", cards=[_answer_card(column, are_running) for column in columns])


def how_measured() -> str:
    """What the marks of the answers mean, and the explanations of all numbers."""
    return render("how_measured", numbers={_STAT_NAMES[key]: how for key, how in MEASURED.items()})


def _answer_card(column: Column, is_running: bool) -> AnswerCard:
    state = "done" if column.is_done else "writing" if is_running else ""
    return AnswerCard(
        column.key.label,
        _role(column),
        _stats(column),
        hint=_hint(column) if state else "\u00a0",
        placeholder={"done": "(no text)", "writing": "…", "": "The answer appears here."}[state],
        state=state,
        lead=_lead(column.prompt),
        text=column.text,
        parts=tuple(_parts(column)),
        is_at_limit=column.is_done and column.is_at_limit,
        notices=column.notices,
    )


def _lead(prompt: str) -> str:
    """The prompt, or its last words."""
    if len(prompt) <= _LEAD:
        return prompt
    end = prompt[-_LEAD:]
    return f"… {end.split(maxsplit=1)[-1]}"


def _role(column: Column) -> str:
    if column.key.quantization is not None:
        return "against full weights"
    return "teacher" if column.teacher is None and not column.why_no_teacher else "student"


def _hint(column: Column) -> str:
    if column.why_no_teacher:
        return f"No agreement: {column.why_no_teacher}."
    if column.teacher is None:
        return "The other answers are compared with this model."
    if column.checks and column.agreement == 1:
        return f"{column.teacher} has the same most likely token everywhere in this answer."
    return f"Marked where {column.teacher}’s most likely token is another. Touch one to see both."


def _parts(column: Column) -> Iterator[AnswerPart]:
    reader = "the full weights" if column.key.quantization is not None else "the teacher"
    for text, checks in column.checked_parts():
        other = next((check for check in checks if not check.agrees), None)
        yield AnswerPart(text) if other is None else _marked(text, other, reader)


def _marked(text: str, check: TokenCheck, reader: str) -> AnswerPart:
    hint = (
        f"Most likely for this model: “{check.own}”; for {reader}: “{check.choice}”, "
        f"{percent(check.choice_probability)}, against {percent(check.probability)}."
    )
    is_far = check.probability < 0.1 * check.choice_probability
    return AnswerPart(text, hint, "far" if is_far else "near")


def _stats(column: Column) -> tuple[Stat, ...]:
    speed, first, share = column.tokens_per_second, column.seconds_to_first_token, column.agreement
    values = (
        _UNKNOWN if speed is None else f"{speed:.0f}",
        _UNKNOWN if first is None else f"{first:.2f} s",
        count(column.parameters),
        byte_size(column.weight_bytes) if column.weight_bytes else _UNKNOWN,
        byte_size(column.kv_cache_bytes_per_token),
        _UNKNOWN if share is None else percent(share),
    )
    rows = zip(MEASURED, values, strict=True)
    return tuple(Stat(_STAT_NAMES[key], value, MEASURED[key]) for key, value in rows)


def preview_card(preview: Preview, *, timed: bool = True) -> str:
    """The numbers of a preview, and its heat maps; without `timed`, the speed may follow."""
    unknown = "this machine is too busy to time it" if timed else "being measured …"
    return render(
        "preview",
        changes=_changes(preview, unknown),
        shares={_AXES.get(axis, axis): share for axis, share in preview.shares.items()},
        samples=SAMPLES,
        maps=heat_maps(preview.plan, preview.importance),
    )


def _changes(preview: Preview, unknown: str) -> list[Change]:
    after = preview.to_json()
    before, dtype = after["before"], preview.entry.inspection.dtype

    def change(key: str, name: str, shown: str, measured: str) -> Change:
        if after[key] is None or before[key] is None:
            return Change(name, "", unknown, measured)
        text = {"count": count, "bytes": byte_size}.get(shown, lambda v: f"{v:.0f} {shown}")
        ratio = after[key] / before[key]
        has_bar = key != "tokens_per_second_estimated"
        return Change(name, text(before[key]), text(after[key]), measured, ratio, has_bar)

    return [
        change(
            "parameters",
            "Parameters",
            "count",
            "Numbers in the weights, embeddings included; counted from the sizes.",
        ),
        change(
            "bytes", "Weights", "bytes", f"Parameters in {dtype}, as the checkpoint stores them."
        ),
        change(
            "kv_cache_bytes_per_token",
            "KV cache per token",
            "bytes",
            f"Memory of each token's keys and values, over all layers, in {dtype}.",
        ),
        change(
            "tokens_per_second_estimated",
            "Estimated speed",
            "tokens/s",
            "One text at a time on this machine: layers and output embedding were timed at the "
            f"largest and smallest sizes with at most {SEQ_LEN} tokens in the cache, in rounds of "
            "which the fastest counts; sizes between are interpolated. No number is shown where no "
            "two rounds agree.",
        ),
    ]


def waiting_card() -> str:
    """Before the first preview."""
    return render("progress", kind="mt-plan", text="Reading the importance of every part …")


def progress_card(note: str) -> str:
    """The step of a pruning that runs now."""
    return render("progress", kind="mt-result", text=note)


def lesson_card(lesson: Lesson, prompt: str) -> str:
    """The loss of a distillation as it falls, and the text before and after."""
    name = lesson.student or "Distillation"
    title, caption, level = f"{name}: distillation", "", 0.0
    dots: list[tuple[float, float]] = []
    if lesson.losses and lesson.teacher_loss is not None:
        first, last = lesson.losses[0][1], lesson.losses[-1][1]
        title = f"{name}: loss {first:.2f} → {last:.2f}" if lesson.steps else title
        high, low = max(first, last) + 0.1, min(lesson.teacher_loss, last) - 0.1
        dots = [
            (_place(at, 0, STEPS, 10, 630), _place(loss, high, low, 8, 192))
            for at, loss in lesson.losses
        ]
        level = _place(lesson.teacher_loss, high, low, 8, 192)
        caption = _lesson_caption(lesson)
    names = ("Pruned", "Pruned and distilled")
    return render(
        "lesson",
        title=title,
        student=lesson.student,
        note=lesson.note,
        caption=caption,
        dots=dots,
        level=level,
        prompt=prompt,
        texts=list(zip(names, lesson.texts, strict=False)),
        is_done=lesson.is_done,
    )


def _lesson_caption(lesson: Lesson) -> str:
    """How the losses were measured, how much was trained, and why it ended."""
    ending = "" if not lesson.is_done or lesson.steps == STEPS else lesson.ending
    if lesson.is_done and not lesson.steps:
        return f"{ending}: {lesson.student} is not trained, its loss is {lesson.losses[0][1]:.2f}."
    return (
        f"{ending + ': ' if ending else ''}{lesson.steps} of {STEPS} steps on {lesson.tokens:,} "
        f"tokens, out of a text of {lesson.text_tokens:,} tokens that {lesson.teacher} sampled. "
        f"Nats per token on {HELD_OUT} other sequences that {lesson.teacher} sampled. "
        f"Dashed: {lesson.teacher} itself, {lesson.teacher_loss:.2f}."
    )


def _place(value: float, start: float, end: float, left: float, right: float) -> float:
    """A value from `start` to `end`, drawn from `left` to `right`."""
    return round(left + (right - left) * (value - start) / (end - start), 1)


def result_card(result: PruningResult, texts: list[Column], prompt: str, seq_len: int) -> str:
    """Losses and sizes before and after, a text of both models, and the next command."""
    entry, out = result.preview.entry, result.sizes.folder_name(result.preview.entry)
    done = result.to_json()
    before, after = done["before"], done["after"]
    evaluated = f"On {done['evaluated_on']}; nats per token, lower is better."
    rows = [
        Change("Loss", f"{before['loss']:.3f}", f"{after['loss']:.3f}", evaluated),
        Change(
            "Perplexity", f"{before['perplexity']:,.1f}", f"{after['perplexity']:,.1f}", "exp(loss)"
        ),
    ]
    sizes = {"parameters": "Parameters", "bytes": "Bytes", **LABELS}
    measured = {"parameters": "In the weight files.", "bytes": "Size of the weight files."}
    for key, name in sizes.items():
        if before[key] != after[key] or key in measured:
            how = measured.get(key, "From config.json.")
            rows.append(Change(name, f"{before[key]:,}", f"{after[key]:,}", how))
    return render(
        "result",
        name=entry.name,
        out=out,
        evaluated_on=done["evaluated_on"],
        rows=rows,
        seconds=result.seconds,
        texts=texts,
        prompt=prompt,
        command=next_command(entry, out, seq_len).parts,
    )


def recipe_card(preview: Preview, sizes: Sizes, seq_len: int) -> str:
    """The command and the Python lines that write the same model elsewhere; none for a whole one.

    `minitron prune` refuses to prune nothing.
    """
    if not sizes.smaller_than(preview.entry):
        return ""
    entry, out = preview.entry, sizes.folder_name(preview.entry)
    parts = [
        ("Command", "mt-command", command(entry, sizes, out, seq_len).parts),
        ("Python", "mt-python", (python_lines(entry, sizes, out, seq_len),)),
    ]
    return render("recipe", parts=parts, out=out)
