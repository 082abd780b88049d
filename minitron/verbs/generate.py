"""`minitron generate`: continue a prompt, and give each part of the text as soon as it is known.

generate(source="tiny", prompt="It was the best of times,", max_new_tokens=40)
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.generation.streamers import BaseStreamer

from minitron.errors import SourceError, TokenizerError, foreign_parser
from minitron.printing import without_controls
from minitron.recipe import verb
from minitron.recipes.first_steps import GenerateRecipe
from minitron.sources.loading import (
    GENERATION,
    default_device,
    load_model,
    load_tokenizer,
    warn_beyond_context,
)
from minitron.sources.opening import open_source
from minitron.sources.quantization import check_quantization, quantized
from minitron.text.encoding import TextStream, prompt_ids

Emit = Callable[[str], None]

logger = logging.getLogger(__name__)

# Settings of generation_config.json that cannot fail here: checked when read, or numbers.
_CHECKED = (
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    *("_from_model_config", "transformers_version"),
)
_NUMBERS = (
    *("do_sample", "temperature", "top_k", "top_p", "max_length", "max_new_tokens"),
    *("use_cache", "output_attentions", "output_hidden_states"),
)


@verb(GenerateRecipe)
def generate(recipe: GenerateRecipe) -> str:
    """The text that a model continues `prompt` with, without the prompt itself.

    Raises SourceError, TokenizerError, TargetError for settings out of range, or MissingExtraError
    to quantize without optimum-quanto.
    """
    parts: list[str] = []
    stream(recipe, parts.append)
    return "".join(parts)


def command(recipe: GenerateRecipe) -> None:
    """What the command line runs and prints: the text while it is generated."""
    prompt = recipe.prompt  # printed with the first text after it, so that no error follows it

    def write(text: str) -> None:
        nonlocal prompt
        print(prompt + without_controls(text), end="", flush=True)
        prompt = ""

    stream(recipe, write)
    print(prompt)


def stream(recipe: GenerateRecipe, emit: Emit) -> None:
    """Call `emit` with each part of the same text, as soon as no later token can change it."""
    if recipe.seed and not recipe.temperature:
        logger.warning(
            "--seed has no effect at --temperature 0, which takes the most probable token"
        )
    if recipe.quantize is not None:
        check_quantization(recipe.quantize)
    source = open_source(recipe.source)
    tokenizer = load_tokenizer(source)
    tokens = len(prompt_ids(tokenizer, recipe.prompt)) + recipe.max_new_tokens
    warn_beyond_context(source, tokens, "the prompt and --max-new-tokens are")
    model = load_model(source, device=default_device())
    if recipe.quantize is not None:
        model = quantized(model, recipe.quantize)
    stream_model(model, tokenizer, recipe, emit)


def stream_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: GenerateRecipe, emit: Emit
) -> None:
    """The same with a loaded model and its tokenizer."""
    prompt = prompt_ids(tokenizer, recipe.prompt)
    if not prompt:  # begin as at the start of a text
        prompt = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else 0]
    ids = torch.tensor([prompt])
    if (highest := int(ids.max())) >= model.config.vocab_size:
        raise TokenizerError(
            f"the tokenizer gives id {highest}, outside the model's vocabulary of "
            f"{model.config.vocab_size}: it belongs to another model"
        )
    ids = ids.to(model.device)
    set_seed(recipe.seed)
    with _settings_boundary(model), _without_reminder():
        # Without gradients; not in inference mode, in which 4-bit weights cannot be used.
        model.generate(  # type: ignore[operator]  # mixed in without types
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_settings(model, recipe),
            streamer=_Streamer(tokenizer, emit),
        )


class _Streamer(BaseStreamer):
    """What `model.generate` calls with every token; each part of text is passed to `emit`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, emit: Emit) -> None:
        self._tokenizer, self._emit = tokenizer, emit
        self._stream: TextStream | None = None

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt (1, tokens), then with each token (1,)."""
        if self._stream is None:
            self._stream = TextStream(self._tokenizer, value.flatten().tolist())
        elif text := self._stream.add(int(value)):
            self._emit(text)

    def end(self) -> None:
        """Called after the last token."""
        if self._stream is not None and (text := self._stream.finish()):
            self._emit(text)


@contextmanager
def _without_reminder() -> Iterator[None]:
    """Leave out what transformers logs amid the text beyond the context: `stream` warns before."""

    def is_other(record: logging.LogRecord) -> bool:
        return "exceeded the model's predefined maximum length" not in record.getMessage()

    stopping = logging.getLogger("transformers.generation.stopping_criteria")
    stopping.addFilter(is_other)
    try:
        yield
    finally:
        stopping.removeFilter(is_other)


def _settings_boundary(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Around generation: SourceError for settings of the model that transformers fails on.

    transformers accepts any value in generation_config.json, and fails only when it generates.
    """
    own = model.generation_config.to_diff_dict()
    unchecked = [
        key
        for key, value in own.items()
        if key not in _CHECKED and not (key in _NUMBERS and isinstance(value, (int, float)))
    ]
    if not unchecked:
        return nullcontext()
    remedy = f"mend or remove {', '.join(sorted(unchecked)):.200}"
    return foreign_parser(f"{model.name_or_path}/{GENERATION}".lstrip("/"), SourceError, remedy)


def _settings(model: PreTrainedModel, recipe: GenerateRecipe) -> GenerationConfig:
    own = model.generation_config
    end = own.eos_token_id if own.eos_token_id is not None else model.config.eos_token_id
    pad = own.pad_token_id
    if pad is None:
        pad = end[0] if isinstance(end, list) else end
    sampling = {"temperature": recipe.temperature, "top_p": recipe.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=recipe.max_new_tokens,
        do_sample=recipe.temperature > 0,
        eos_token_id=end,
        pad_token_id=pad,
        **(sampling if recipe.temperature > 0 else {}),
    )
