"""Real tokenizers with tiny vocabularies, built in code."""

from __future__ import annotations

import string

import transformers
from tokenizers.pre_tokenizers import ByteLevel

from .text_encoders import QWEN_VOCABULARY, VOCABULARY

WORDS = ("a", "the", "cat", "on", "mat")
PUNCTUATION = ".,!-"

Merges = list[tuple[str, str]]


def merges_of(words: list[list[str]]) -> Merges:
    """The pairs that glue the given symbols together to words, from the left."""
    merges: Merges = []
    for symbols in words:
        glued = symbols[0]
        for symbol in symbols[1:]:
            if (glued, symbol) not in merges:
                merges.append((glued, symbol))
            glued += symbol
    return merges


def numbered(tokens: list[str], size: int) -> dict[str, int]:
    """A vocabulary of distinct tokens that fits into `size`."""
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    if len(vocabulary) > size:
        raise AssertionError(f"{len(vocabulary)} tokens do not fit into {size}")
    return vocabulary


def clip() -> transformers.CLIPTokenizer:
    """Lower-case letters, digits and a few words, up to 16 tokens; the last two tokens begin and end the text."""
    merges = merges_of([[*word[:-1], f"{word[-1]}</w>"] for word in WORDS])
    symbols = string.ascii_lowercase + string.digits + PUNCTUATION
    tokens = [*string.ascii_lowercase, *(f"{symbol}</w>" for symbol in symbols), *map("".join, merges)]
    vocabulary = numbered(tokens, VOCABULARY - 2)
    vocabulary |= {"<|startoftext|>": VOCABULARY - 2, "<|endoftext|>": VOCABULARY - 1}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16)


def t5() -> transformers.T5Tokenizer:
    """A Unigram model of letters, digits and a few words."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS]
    pieces += [(symbol, -4.0) for symbol in string.ascii_letters + string.digits + PUNCTUATION]
    numbered([piece for piece, _ in pieces], VOCABULARY)
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def qwen() -> transformers.Qwen2Tokenizer:
    """All bytes and a few words; the first tokens are the special ones that the tiny Qwen expects."""
    special = ["<|endoftext|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    special += ["<|im_start|>", "<|im_end|>"]
    merges = merges_of([["Ġ", *word] for word in WORDS])
    tokens = [*special, *sorted(ByteLevel.alphabet()), *map("".join, merges)]
    vocabulary = numbered(tokens, QWEN_VOCABULARY)
    return transformers.Qwen2Tokenizer(
        vocab=vocabulary, merges=merges, additional_special_tokens=special[1:], model_max_length=1024
    )
