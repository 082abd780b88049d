"""OmegaConf's references: each form as OmegaConf resolves it, and no way to loop or explode."""

from typing import Any

import pytest

from minitron.conversion.interpolation import LARGEST_NUMBER, resolve
from minitron.errors import SourceError

WHERE = "a.nemo/model_config.yaml"


@pytest.mark.parametrize(
    ("root", "value"),
    [
        ({"x": "${.y}", "y": 7}, 7),
        ({"x": "${y}", "y": 7}, 7),
        ({"x": "${y}", "y": None}, None),
        ({"x": "${y}", "y": [1, "${z}"], "z": 2}, [1, 2]),
        ({"x": "${y.z}", "y": {"z": 7}}, 7),
        ({"x": "${y[1].z}", "y": [0, {"z": 7}]}, 7),
        ({"x": "${y.1}", "y": [0, 7]}, 7),
        ({"x": "${y}", "y": "${z}", "z": "${a}", "a": 7}, 7),
        ({"x": "${model.y}", "y": 7}, 7),
        ({"x": "${model.y}", "model": {"y": 8}, "y": 7}, 8),
        ({"x": "${${y}}", "y": "z", "z": 7}, 7),
        ({"x": "${multiply:4, 6}"}, 24),
        ({"x": "${multiply:4, ${.y}}", "y": 6}, 24),
        ({"x": "${multiply: ${y} , ${multiply:2,0.5}}", "y": 6}, 6.0),
        ({"x": "${ .y }", "y": 7}, 7),
        ({"x": "a_${y}_${z}", "y": 7, "z": "b"}, "a_7_b"),
        ({"x": "a_${y}", "y": None}, "a_null"),
        ({"x": r"\${y}"}, "${y}"),
        ({"x": r"\${y} ${y}", "y": 7}, "${y} 7"),
        ({"x": "no $reference {here}"}, "no $reference {here}"),
    ],
)
def test_a_reference_has_the_value_it_leads_to(root: dict[str, Any], value: object) -> None:
    found = resolve(root, WHERE)["x"]

    assert found == value
    assert type(found) is type(value)


def test_dots_climb_from_the_section_that_holds_the_reference() -> None:
    root = {
        "size": 1,
        "model": {"size": 2, "data": {"size": 3, "a": "${.size}", "b": "${..size}"}},
    }
    root["model"]["data"]["c"] = "${...size}"  # type: ignore[index]
    root["model"]["data"]["d"] = "${size}"  # type: ignore[index]

    data = resolve(root, WHERE)["model"]["data"]

    assert [data[key] for key in "abcd"] == [3, 2, 1, 1]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "itself": ({"x": "${.x}"}, "x refers to itself"),
    "a cycle": ({"x": "${y}", "y": "${z}", "z": "${x}"}, "x -> y -> z -> x refers to itself"),
    "a cycle in an argument": (
        {"x": "${multiply:2, ${y}}", "y": "${multiply:2, ${x}}"},
        "x -> y -> x refers to itself",
    ),
    "its own section": ({"s": {"x": "${s}"}}, "s.x refers to itself"),
    "sections in each other": ({"s": {"x": "${t}"}, "t": {"y": "${s}"}}, "refers to itself"),
    "nothing": ({"x": "${hidden_sise}"}, "x refers to a key that is not there: ${hidden_sise}"),
    "nothing within": ({"x": "${y.z}", "y": 7}, "not there: ${y.z}"),
    "beyond a list": ({"x": "${y.3}", "y": [1]}, "not there: ${y.3}"),
    "above the top": ({"x": "${...y}", "y": 7}, "above the top"),
    "the environment": ({"x": "${oc.env:HOME}"}, "a resolver that is not known: ${oc.env:HOME}"),
    "the clock": ({"x": "${now:%Y}"}, "a resolver that is not known"),
    "an open end": ({"x": "${y", "y": 7}, "does not end"),
    "an empty one": ({"x": "${}"}, "cannot be read"),
    "dots alone": ({"s": {"x": "${.}"}}, "cannot be read"),
    "one factor": ({"x": "${multiply:4}"}, "multiply with 1 values"),
    "no number": ({"x": "${multiply:4, ${y}}", "y": "wide"}, "multiplies 'wide'"),
    "a flag": ({"x": "${multiply:4, ${y}}", "y": True}, "multiplies True"),
    "a section in text": ({"x": "a${y}", "y": {}}, "joins a whole section"),
    "a long chain": (
        {f"x{step}": f"${{x{step + 1}}}" for step in range(1000)},
        "more than 30 references away",
    ),
    "text that multiplies": (
        {"x0": "x" * 10} | {f"x{step}": f"${{x{step - 1}}}" * 10 for step in range(1, 20)},
        "is a text of",
    ),
    "numbers that multiply": (
        {"x0": 10} | {f"x{n}": f"${{multiply:${{x{n - 1}}},${{x{n - 1}}}}}" for n in range(1, 25)},
        "too large",
    ),
    "many in one": ({"x": "${y}" * 100_000, "y": 1}, "too long"),
    "one in the other": ({"x": "${" * 40 + "y" + "}" * 40, "y": "y"}, "too long or nested"),
    "sections deep in sections": (
        {f"x{n}": {"a": {"b": {"c": {"d": f"${{x{n + 1}}}"}}}} for n in range(29)}
        | {"x29": "${" * 31},
        "does not end",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_leads_nowhere_is_refused_by_the_name_of_its_key(case: str) -> None:
    root, reason = REFUSED[case]

    with pytest.raises(SourceError) as refusal:
        resolve(root, WHERE)

    assert reason in str(refusal.value)
    assert str(refusal.value).startswith(WHERE)
    assert "\n" not in str(refusal.value)


def test_products_up_to_the_limit_are_exact() -> None:
    limit = LARGEST_NUMBER - 1

    assert resolve({"x": f"${{multiply:1, {limit}}}"}, WHERE)["x"] == limit
    with pytest.raises(SourceError, match="too large"):
        resolve({"x": "${multiply:.inf, 1}"}, WHERE)


def test_a_section_referred_to_many_times_is_resolved_once() -> None:
    root: dict[str, Any] = {"x0": {"y": 1}}
    root |= {f"x{step}": [f"${{x{step - 1}}}"] * 10 for step in range(1, 20)}

    found = resolve(root, WHERE)  # 10 ** 19 copies otherwise

    assert found["x1"] == [{"y": 1}] * 10


def test_only_where_allowed_a_reference_stays_as_text() -> None:
    root = {"data": {"path": "${paths.data}"}, "x": 1}

    assert resolve(root, WHERE, lambda place: place[0] == "data") == root
    with pytest.raises(SourceError, match=r"x\.path refers to a key that is not there"):
        resolve({"x": root["data"]}, WHERE, lambda place: place[0] == "data")
