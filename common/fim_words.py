"""The marker words for prefix, suffix and middle (FIM), by family of models."""

from collections.abc import Callable
from typing import NamedTuple


class FimWords(NamedTuple):
    """In all families the prompt is: prefix word, prefix, suffix word, suffix, middle word."""

    prefix: str
    suffix: str
    middle: str


FAMILIES = (
    FimWords("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite, and models trained here
    FimWords("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    FimWords("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    FimWords("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    FimWords("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
)


def known_fim_words(token_to_id: Callable[[str], int | None]) -> FimWords | None:
    """The first family whose three words are single tokens of a vocabulary, or None."""
    return next((words for words in FAMILIES if all(token_to_id(word) is not None for word in words)), None)
