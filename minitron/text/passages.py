"""Passages: texts cut to a length, and a draw among all of them at bounded memory.

passages = chain.from_iterable(cut(text, 4_000) for text in texts)
draw(passages, 1_000_000, seed=0)
"""

import heapq
from collections.abc import Iterable, Iterator

import numpy as np

from minitron.text.text_row import Text

_END = 4  # characters that the end of a text counts as: about a token


def cut(text: Text, characters: int) -> Iterator[Text]:
    """A text in passages of `characters` up to twice as many; the last may be shorter.

    Cuts behind a line end where there is one, else before a blank, else anywhere.
    """
    whole, start = text.text, 0
    while len(whole) - start > 2 * characters:
        most = start + 2 * characters
        end = whole.find("\n", start + characters - 1, most) + 1
        if not end:
            blank = whole.find(" ", start + characters, most)
            end = blank if blank > 0 else most
        yield Text(whole[start:end], text.origin)
        start = end
    yield Text(whole[start:], text.origin) if start else text


def draw(passages: Iterable[Text], characters: int, seed: int) -> list[Text]:
    """Passages drawn at random, as many as hold `characters` (all where there are fewer).

    Every passage is drawn equally likely, and so is every character; passages that are blank are
    left out. Holds what is drawn and one passage more: each passage gets a random key, and those
    of the lowest keys are kept, in the order of their keys.
    """
    keys = np.random.default_rng(seed)
    kept: list[tuple[float, int, Text]] = []  # a heap; the highest key first, as its negative
    held = 0
    for number, passage in enumerate(passages):
        if not passage.text.strip():
            continue
        entry = (-keys.random(), number, passage)
        heapq.heappush(kept, entry)
        held += len(passage.text) + _END
        while held - (highest := len(kept[0][2].text) + _END) >= characters:
            heapq.heappop(kept)
            held -= highest
    return [passage for _, _, passage in sorted(kept, reverse=True)]
