"""Column cards: the answers of a comparison as they grow, with what the teacher makes of them."""

from minitron.space.jobs.agreement import Verdict
from minitron.space.jobs.comparing import MEASURED, Column
from minitron.space.ui.html import Html, count, joined, percent, size, stat, tag

_NOT_YET = "–"


def cards(columns: list[Column]) -> Html:
    """All columns, side by side where there is room."""
    return tag("div", *map(_card, columns), class_="mt-columns")


def empty_cards(names: list[str]) -> Html:
    """Their places before anything is said."""
    waiting = "The answer appears here."
    return tag(
        "div",
        *(
            tag(
                "section",
                tag("header", tag("h3", name), class_="mt-card-head"),
                tag("div", tag("span", waiting, class_="mt-faint"), class_="mt-text"),
                tag("p", "\u00a0", class_="mt-tip"),
                _stats(None),
                class_="mt-card",
            )
            for name in names
        ),
        class_="mt-columns",
    )


def how_measured() -> Html:
    """Every number's tooltip, for who has no mouse."""
    rows = [
        joined(tag("dt", key.replace("_", " ")), tag("dd", told)) for key, told in MEASURED.items()
    ]
    return tag(
        "details",
        tag("summary", "How each number is measured"),
        tag("dl", *rows, class_="mt-measured"),
        class_="mt-details",
    )


def _card(column: Column) -> Html:
    state = "done" if column.is_done else "writing"
    return tag(
        "section",
        tag(
            "header",
            tag("h3", column.key.label),
            tag("span", _role(column), class_="mt-badge"),
            tag("button", "Copy", type="button", class_="mt-copy", data_copy=column.text),
            class_="mt-card-head",
        ),
        tag("div", *_text(column), class_="mt-text", tabindex=0, role="log", aria_live="off"),
        tag("p", _hint(column), class_="mt-tip", data_default=_hint(column)),
        _stats(column),
        *(tag("p", notice, class_="mt-notice") for notice in column.notices),
        class_="mt-card",
        data_state=state,
        data_model=column.key.label,
    )


def _role(column: Column) -> str:
    if column.key.quantization is not None:
        return "full weights read along"
    return "teacher" if column.teacher is None and not column.reason else "child"


def _hint(column: Column) -> str:
    if column.reason:
        return f"No agreement: {column.reason}."
    if column.teacher is None:
        return "The others are compared with this one."
    if column.verdicts and column.agreement == 1:
        return f"{column.teacher} would have said the same, word for word."
    return f"Marked: where {column.teacher} would have said something else. Touch a mark."


def _text(column: Column) -> list[Html]:
    if not column.pieces:
        return [tag("span", "…" if not column.is_done else "(nothing)", class_="mt-faint")]
    reader = "The full weights" if column.key.quantization is not None else "The teacher"
    return [_piece(text, verdicts, reader) for text, verdicts in column.judged()]


def _piece(text: str, verdicts: list[Verdict], reader: str) -> Html:
    other = next((verdict for verdict in verdicts if not verdict.agrees), None)
    if other is None:
        return tag("span", text)
    told = (
        f"{reader}: “{other.choice}” {percent(other.choice_probability)}; "
        f"this: {percent(other.probability)}"
    )
    surprise = "far" if other.probability < 0.1 * other.choice_probability else "near"
    return tag("mark", text, class_=f"mt-{surprise}", title=told, data_tip=told, tabindex=0)


def _stats(column: Column | None) -> Html:
    """The numbers, in places that stay."""
    if column is None:
        values = dict.fromkeys(MEASURED, _NOT_YET)
    else:
        speed, first = column.tokens_per_second, column.seconds_to_first_token
        share = column.agreement
        is_known = column.parameters > 0
        values = {
            "tokens_per_second": _NOT_YET if speed is None else f"{speed:.0f}",
            "seconds_to_first_token": _NOT_YET if first is None else f"{first:.2f} s",
            "parameters": count(column.parameters) if is_known else _NOT_YET,
            "weight_bytes": size(column.weight_bytes) if is_known else _NOT_YET,
            "kv_cache_bytes_per_token": size(column.kv_cache_bytes_per_token)
            if is_known
            else _NOT_YET,
            "agreement_with_teacher": _NOT_YET if share is None else percent(share),
        }
    names = {
        "tokens_per_second": "tokens / s",
        "seconds_to_first_token": "first token",
        "parameters": "parameters",
        "weight_bytes": "weights",
        "kv_cache_bytes_per_token": "KV / token",
        "agreement_with_teacher": "agreement",
    }
    rows = (stat(names[key], values[key], MEASURED[key]) for key in names)
    return tag("dl", *rows, class_="mt-stats")
