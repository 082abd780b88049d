"""Text stream: generated tokens as text, each part as soon as no later token can change it.

stream = TextStream(tokenizer, prompt)
for token in tokens:
    emit(stream.add(token))
emit(stream.finish())
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"  # the end of a text whose last character lacks bytes


class TextStream:
    """Tokens are decoded after those before them, the prompt's included, since many tokenizers drop
    the space before the first token that they decode; special tokens are left out.

    tokenizers' DecodeStream is not used: where sampled bytes are no character it raises ("Invalid
    prefix"), and after a prompt that ends in U+FFFD it returns the prompt again.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._before = list(prompt)  # the prompt, then the tokens of the last part
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        """The text that this token completes, empty while bytes of a character are missing."""
        self._pending.append(token)
        text = self._pending_text()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._before, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """The text of the tokens that no part holds yet, complete or not."""
        text = self._pending_text()
        self._before, self._pending = self._pending, []
        return text

    def _pending_text(self) -> str:
        before = self._decode(self._before)
        return self._decode([*self._before, *self._pending])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
