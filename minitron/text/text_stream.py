"""Text stream: generated tokens as text, each part as soon as no later token can change it.

stream = TextStream(tokenizer, prompt)
for token in tokens:
    emit(stream.add(token))
emit(stream.finish())
"""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from minitron.errors import TokenizerError


class TextStream:
    """Tokens are decoded after the prompt, since many tokenizers drop the space before the first
    token that they decode; special tokens are left out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> None:
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise TokenizerError(
                f"{tokenizer.name_or_path}: its tokenizer has no tokenizer.json, which generating "
                "needs: open it with AutoTokenizer and save it"
            )
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        self._before = list(prompt)  # the prompt, or the tokens of the last part
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        """The text that this token completes, empty while bytes of a character are missing."""
        self._pending.append(token)
        text = self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
        if text:
            self._before, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """The text of the tokens that no part holds yet, complete or not."""
        before, pending = self._before, self._pending
        self._before, self._pending = pending, []
        return self._decode([*before, *pending])[len(self._decode(before)) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
