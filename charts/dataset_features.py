"""What a converted dataset holds, from its meta.json and rows."""

import json
import sys
from collections import Counter
from pathlib import Path

from common.command import InputError
from dataset.convert import FORMAT_VERSION


def read_meta(path: Path) -> dict:
    """meta.json of a dataset.

    Raises:
        InputError: there is none, or it is not as convert.py writes it.
    """
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if {"flags", "languages", "sources"} <= meta.keys() and meta["format_version"] == FORMAT_VERSION:
            return meta
    except (OSError, ValueError, AttributeError, KeyError):
        pass
    raise InputError(f"{path}: missing or not as convert.py writes it; run dataset/convert.py again")


def count_tokens(jsonl: Path, stride: int) -> Counter:
    """How often each token id stands in the first `stride` tokens of every window.

    Windows overlap beyond that: so no token counts twice, and only a file's last few are left out.
    """
    tokens: Counter = Counter()
    with jsonl.open(encoding="utf-8") as file:
        for line in file:
            numbers = line[line.find("[") + 1 : line.find("]")]
            tokens.update(numbers.split(", ", stride)[:stride])
    return Counter({int(token): count for token, count in tokens.items() if token.isdecimal()})


def print_features(name: str, meta: dict, lengths: list[int]) -> None:
    flags = meta["flags"]
    print(f"{name}: windows of {flags['segment_len']} tokens every {flags['stride']}, split by {flags['split_by']}")
    print(f"{'':<14}{'files':>9}{'windows':>11}{'tokens':>13}{'bytes':>13}{'bytes/token':>13}")
    for language, splits in meta["languages"].items():
        for split, counts in splits.items():
            sizes = counts["files"], counts["windows"], counts["source_tokens"], counts["source_bytes"]
            ratio = counts["source_bytes"] / max(counts["source_tokens"], 1)
            print(
                f"{language + ' ' + split:<14}{sizes[0]:>9,}{sizes[1]:>11,}{sizes[2]:>13,}{sizes[3]:>13,}{ratio:>13.2f}"
            )
    ordered = sorted(lengths)
    median, longest = ordered[len(ordered) // 2], ordered[-1]
    # A file of n tokens has n // stride windows, of which those that start in its last segment_len tokens are short.
    windows = sum(n // flags["stride"] for n in lengths)
    full = sum(max(0, (n - flags["segment_len"]) // flags["stride"] + 1) for n in lengths)
    print(f"tokens per file: median {median:,}, longest {longest:,}")
    print(f"windows shorter than {flags['segment_len']} tokens: {1 - full / max(windows, 1):.1%}")
    print(f"exact copies of other files: {meta['duplicate_files']}")
    print(f"files skipped: {sum(len(source['skipped']) for source in meta['sources'])}")
    lengths = list(meta["contamination"][flags["split_by"]])
    print(f"\n{'dev n-grams in train':<24}" + "".join(f"{'n = ' + n:>10}" for n in lengths))
    for split_by, shares in meta["contamination"].items():
        label = f"split by {split_by}" + " (this)" * (split_by == flags["split_by"])
        cells = ("-" if shares[n] is None else f"{shares[n]:.2%}" for n in lengths)
        print(f"{label:<24}" + "".join(f"{cell:>10}" for cell in cells))


def display_word(meta: dict, token: int) -> str:
    """A token as text, with its white space made visible; its number where the tokenizer cannot be had."""
    from common.model_files import load_tokenizer

    if "loaded" not in meta:
        try:
            meta["loaded"] = load_tokenizer(meta["tokenizer"]["name"])
        except InputError as error:
            print(f"note: tokens are shown by number ({error})", file=sys.stderr)
            meta["loaded"] = None
    if meta["loaded"] is None:
        return str(token)
    text = meta["loaded"].decode([token], skip_special_tokens=False)
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
