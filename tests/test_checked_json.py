"""JSON of anybody's is refused where it is not what is expected, with key, value and kind."""

from pathlib import Path
from typing import Any

import pytest

from minitron.errors import SourceError
from minitron.files.checked_json import Each, Number, check_kind, read_object
from minitron.records.minitron_json import check_record, read_record
from minitron.sources.opening import zoo

KIND = {
    "name": str,
    "revision?": (str, None),
    "size": int,
    "shares": Each(float),
    "rows?": [{"values": [(str, float)]}],
    "noisy?": Number,
}
GOOD: dict[str, Any] = {"name": "a", "size": 3, "shares": {"x": 1, "y": 0.5}, "more": [None]}


@pytest.mark.parametrize(
    "more", [{}, {"revision": None}, {"rows": [{"values": ["a", 1]}]}, {"noisy": float("nan")}]
)
def test_what_is_expected_passes_and_other_keys_are_free(more: dict[str, Any]) -> None:
    check_kind({**GOOD, **more}, KIND, "a.json", SourceError, "mend it")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"name": 3}, "says name: 3; it must be text"),
        ({"size": True}, "says size: True; it must be a whole number"),
        ({"size": 1.5}, "says size: 1.5; it must be a whole number"),
        ({"size": 1 << 63}, "says size: 9223372036854775808; it must be"),
        ({"shares": []}, "says shares: list; it must be an object"),
        ({"shares": {"x": float("inf")}}, "says shares.x: inf; it must be a finite number"),
        ({"shares": {"x": None}}, "says shares.x: None; it must be a finite number"),
        ({"revision": {}}, "says revision: dict; it must be text or null"),
        ({"rows": [{"values": "a"}]}, r"says rows\[0\].values: 'a'; it must be a list"),
        ({"rows": [{}]}, r"has no rows\[0\].values"),
        ({"rows": [{"values": [[]]}]}, r"says rows\[0\].values\[0\]: list; it must be text or"),
    ],
)
def test_what_is_not_is_named(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(SourceError, match=f"^a.json {problem}.*: mend it$"):
        check_kind({**GOOD, **changed}, KIND, "a.json", SourceError, "mend it")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"[" * 10**5, b'{"a": "\\ud800"}', b"9" * 5000]
)
def test_a_file_that_is_no_object_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"a\.json (is not JSON|holds no JSON object).*: mend it"):
        read_object(path, SourceError, "mend it")


def test_records_within_records_have_a_bound() -> None:
    record = read_record(zoo()["tiny-half"])
    check_record(record, "minitron.json")
    step: Any = record
    for _ in range(60):
        step["source"] = {**step["source"], "made": {**record, "source": {**record["source"]}}}
        step = step["source"]["made"]
        step["source"].pop("made", None)
    with pytest.raises(SourceError, match="more than 50 records within each other"):
        check_record(record, "minitron.json")
