"""A SentencePiece model as a fast Hub tokenizer that gives SentencePiece's own ids.

It knows how a BPE or unigram model becomes a `tokenizers.Tokenizer`. It trusts none that
`check_tokenizer` has not compared with SentencePiece. A tokenizer built here adds no token by
itself, neither bos nor eos.

    >>> save_tokenizer(Path("megatron_2.model"), Path("OUT.partial"))
"""

import json
import re
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minitron.conversion.sentencepiece_check import Difference, check_tokenizer
from minitron.conversion.sentencepiece_model import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    SentencePieceModel,
    read_model,
)
from minitron.conversion.sentencepiece_normalizer import APART, SPACE, NormalizerSpec, normalizer

__all__ = ["Difference", "build_tokenizer", "check_tokenizer", "save_tokenizer"]


def build_tokenizer(model_file: Path) -> PreTrainedTokenizerFast:
    """The model as a fast tokenizer; `check_tokenizer` says whether it is the same one."""
    model = read_model(model_file)
    spec = model.normalizer_spec
    tokenizer = Tokenizer(_bpe(model) if model.algorithm == BPE else _unigram(model))
    tokenizer.normalizer = normalizer(spec, model.symbols)
    tokenizer.pre_tokenizer = _pre_tokenizer(model)
    tokenizer.decoder = _decoder(spec)
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False) for text in model.texts(UNKNOWN, CONTROL)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{role}_token": model.pieces[index].text for role, index in model.special.items()},
    )


def save_tokenizer(model_file: Path, folder: Path) -> tuple[Difference, ...]:
    """Write tokenizer.json, its config and tokenizer.model, once proven; returns what differs."""
    tokenizer = build_tokenizer(model_file)
    differences = check_tokenizer(tokenizer, model_file)
    tokenizer.save_pretrained(folder)
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name transformers 4 knows as well
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # llama.cpp's converter reads this one.
    (folder / "tokenizer.model").write_bytes(model_file.read_bytes())
    return differences


def _bpe(model: SentencePieceModel) -> models.BPE:
    """SentencePiece joins the neighbours whose joint piece scores best: every such pair, ranked."""
    scores = {piece.text: piece.score for piece in model.pieces if piece.kind == NORMAL}
    ids = {piece.text: index for index, piece in enumerate(model.pieces)}
    ranked = sorted(
        (-scores[text], ids[text], cut)
        for text in scores
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    )
    texts = [piece.text for piece in model.pieces]
    return models.BPE(
        ids,
        [(texts[index][:cut], texts[index][cut:]) for _, index, cut in ranked],
        unk_token=texts[model.special["unk"]],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=bool(model.symbols),  # no merges lead to one, see _pre_tokenizer
    )


def _unigram(model: SentencePieceModel) -> models.Unigram:
    return models.Unigram(
        [(piece.text, piece.log_probability) for piece in model.pieces],
        unk_id=model.special["unk"],
        byte_fallback=model.byte_fallback,
    )


def _pre_tokenizer(model: SentencePieceModel) -> pre_tokenizers.PreTokenizer:
    """Cuts at user-defined symbols, and inside a literal "<0x0A>", which is text and not a byte.

    Added tokens would cut at symbols too, but normalize what stands between them piece by piece.
    In a unigram model the score of a symbol decides, as it does in SentencePiece.
    """
    cuts = []
    if model.algorithm == BPE and model.symbols:
        longest_first = sorted(model.symbols, key=len, reverse=True)
        symbols = Regex("|".join(map(re.escape, longest_first)))
        cuts.append(pre_tokenizers.Split(symbols, "isolated"))
    if model.texts(BYTE):
        byte = Regex("<(?=0x[0-9A-F]{2}>)")
        cuts.append(pre_tokenizers.Split(byte, "merged_with_previous"))
    return pre_tokenizers.Sequence(cuts)


def _decoder(spec: NormalizerSpec) -> decoders.Decoder:
    """Pieces to text, without the blank that stands for the dummy prefix.

    Where blanks are removed, each piece loses one until the first text comes; only there is a
    piece that is one blank told apart from a blank at the start of a longer piece.
    """
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.remove_extra_whitespaces:
        alone = decoders.Replace(Regex(rf"\A{SPACE}\z"), APART)
        leading = decoders.Replace(Regex(rf"\A({APART}+ ?| )"), "")
        return decoders.Sequence([alone, *steps, leading, decoders.Replace(APART, " ")])
    prefix = [decoders.Strip(" ", left=1, right=0)] if spec.add_dummy_prefix else []
    return decoders.Sequence([*steps, *prefix])
