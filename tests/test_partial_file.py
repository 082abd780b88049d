"""A file elsewhere comes in the pieces that are read, each once."""

import gc
from pathlib import Path

import pytest

from minitron.files.file_window import FileWindow
from minitron.files.partial_file import PartialPath, bring, stand_in

CONTENT = bytes(range(250)) * 4


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    monkeypatch.setattr("minitron.files.partial_file.BLOCK", 100)
    return []


def elsewhere(asked: list[tuple[int, int]]) -> PartialPath:
    def fetch(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return CONTENT[start:stop]

    return stand_in(len(CONTENT) - 30, fetch)


def test_what_is_read_through_a_window_is_fetched_once(asked: list[tuple[int, int]]) -> None:
    path = elsewhere(asked)
    with path.open("rb") as file:
        window = FileWindow(file.fileno(), path, 120, 500)
        for position, size in ((0, 10), (5, 100), (150, 80), (0, 60)):
            window.seek(position)
            assert window.read(size) == CONTENT[120 + position :][:size]
    assert asked == [(100, 200), (200, 300), (300, 400)]


def test_the_last_piece_ends_with_the_file(asked: list[tuple[int, int]]) -> None:
    path = elsewhere(asked)
    bring(path, 960, 5000)
    assert asked == [(900, 970)]
    assert path.read_bytes()[900:] == CONTENT[900:970]
    assert path.stat().st_size == 970


def test_missing_pieces_come_in_one_request(asked: list[tuple[int, int]]) -> None:
    path = elsewhere(asked)
    bring(path, 200, 300)
    bring(path, 0, 600)
    assert asked == [(200, 300), (0, 600)]
    assert path.read_bytes()[:600] == CONTENT[:600]


def test_it_is_deleted_when_nothing_refers_to_it(asked: list[tuple[int, int]]) -> None:
    path = elsewhere(asked)
    name = Path(str(path))
    assert name.exists()
    del path
    gc.collect()
    assert not name.exists()


def test_other_paths_are_left_alone(tmp_path: Path, asked: list[tuple[int, int]]) -> None:
    bring(tmp_path / "absent", 0, 10)
    bring(elsewhere(asked).parent, 0, 10)
    assert asked == []
