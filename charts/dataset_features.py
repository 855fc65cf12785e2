"""Describe a converted dataset from its meta.json."""

import sys
from typing import TYPE_CHECKING

from charts.tables import text_table
from common.command import InputError
from common.model_files import load_tokenizer
from dataset.format import Meta, counts_table

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def describe(name: str, meta: Meta) -> str:
    """Return the settings of the dataset, its counts, and what its files are like."""
    flags = meta["flags"]
    lengths = sorted(file_lengths(meta))
    splits = [counts for splits in meta["languages"].values() for counts in splits.values()]
    short = sum(counts["short_windows"] for counts in splits) / max(1, sum(counts["windows"] for counts in splits))
    return "\n".join(
        [
            f"{name}: windows of {flags['segment_len']} tokens every {flags['stride']}, split by {flags['split_by']}",
            counts_table(meta["languages"]),
            f"tokens per file: median {lengths[len(lengths) // 2]:,}, longest {lengths[-1]:,}",
            f"windows shorter than {flags['segment_len']} tokens: {short:.1%}",
            f"exact copies of other files: {meta['duplicate_files']}",
            f"files skipped: {sum(len(source['skipped']) for source in meta['sources'])}",
        ]
    )


def contamination_table(meta: Meta) -> str:
    """Return how much of dev occurs in train, with a line for each way to split that was measured."""
    chosen = meta["flags"]["split_by"]
    lengths = list(meta["contamination"][chosen])
    rows = [["dev n-grams in train", *(f"n = {n}" for n in lengths)]]
    for split_by, shares in meta["contamination"].items():
        cells = ("-" if shares.get(n) is None else f"{shares[n]:.2%}" for n in lengths)
        rows.append([f"split by {split_by}" + " (this)" * (split_by == chosen), *cells])
    return text_table(rows)


def file_lengths(meta: Meta) -> list[int]:
    """Return the number of tokens of each source file."""
    return [count for source in meta["sources"] for count in source["files"].values()]


def frequent_words(meta: Meta) -> list[tuple[str, float]]:
    """Return the most frequent tokens and their shares of all tokens.

    A token is shown as its text, or as its number if the tokenizer cannot be loaded.
    """
    try:
        tokenizer = load_tokenizer(meta["tokenizer"]["name"])
    except InputError as error:
        print(f"note: tokens are shown by number ({error})", file=sys.stderr)
        tokenizer = None
    total = sum(file_lengths(meta))
    return [(_word(tokenizer, token["id"]), token["count"] / max(total, 1)) for token in meta["frequent_tokens"]]


def _word(tokenizer: "Tokenizer | None", token: int) -> str:
    """Return a token's text with visible signs for white space."""
    text = str(token) if tokenizer is None else tokenizer.decode([token], skip_special_tokens=False)
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
