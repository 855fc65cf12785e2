"""Cut source files into windows of token ids: dataset/<dataset_name>/json/{train,dev}.jsonl and meta.json.

python dataset/convert.py --source stdlib --tokenizer tiny --dataset_name stdlib   # this Python's own library
python dataset/convert.py --source ~/my_project --dataset_name my_project          # any folder of .py or .java files
python dataset/convert.py                      # TheAlgorithms in dataset/Python and dataset/Java, GPT-2's vocabulary
"""

import itertools
import json
import os
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.command import Flags, InputError, flag, folder_name, parse_flags, run_command
from common.files import ROOT, replace_folder
from common.model_files import fingerprint, load_tokenizer
from dataset.sources import DEFAULT_SOURCES, SourceFile, describe_sources, find_sources, tokenize_files
from dataset.splits import measure_splits

FORMAT_VERSION = 2


@dataclass
class ConvertConfig(Flags):
    segment_len: int = flag(
        254, "tokens of a window; with the control word and <eos> around it, 256", at_least=1, at_most=1_000_000
    )
    stride: int = flag(10, "tokens between the starts of two windows of a file", at_least=1, at_most=1_000_000)
    dev_size: float = flag(0.1, "share of each language's windows that goes to dev.jsonl", above=0, below=1)
    source: tuple[str, ...] = flag(
        DEFAULT_SOURCES,
        "folders (or files) of .py and .java; `stdlib` is the running Python's own library without its tests; "
        "of the default folders, whichever exist",
        type=str,
        nargs="+",
        metavar="DIR",
    )
    tokenizer: str = flag("gpt2", "model name, Hub id or local folder whose vocabulary cuts the text")
    dataset_name: str = flag(
        "source_code", "the result is dataset/<dataset_name>/json; an older one is replaced", type=folder_name
    )
    seed: int = flag(122, "of the choice of dev files", at_least=0, below=2**63)
    num_workers: int = flag(0, "threads that tokenize; 0: all cores", at_least=0, at_most=256)
    split_by: str = flag(
        "file",
        "what is wholly in train or wholly in dev: a file, all files of a folder, or only a window (`segment`: "
        "overlapping windows on both sides, so dev measures memory)",
        choices=("file", "folder", "segment"),
    )


def main() -> None:
    config = parse_flags(ConvertConfig, __doc__)
    if config.num_workers:
        os.environ["RAYON_NUM_THREADS"] = str(config.num_workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    files = find_sources(config.source)
    tokenizer = load_tokenizer(config.tokenizer)
    files, skipped = tokenize_files(files, tokenizer, config.stride)
    if not files:
        reasons = ", ".join(sorted({reason for _, reason in skipped}))
        raise InputError(f"{' '.join(config.source)}: no file can be used ({reasons}); name other sources")
    languages = {label: [f for f in files if f.label == label] for label in sorted({f.label for f in files})}
    contaminations = measure_splits(languages, config.segment_len, config.split_by, config.dev_size, config.seed)
    meta = {
        "format_version": FORMAT_VERSION,
        # without num_workers, which changes nothing in the result
        "flags": {name: value for name, value in asdict(config).items() if name != "num_workers"},
        "tokenizer": {
            "name": config.tokenizer,
            "fingerprint": fingerprint(tokenizer),
            "vocab_size": tokenizer.get_vocab_size(),
        },
        "languages": {label: count(of_language, config.segment_len) for label, of_language in languages.items()},
        "contamination": contaminations,
        "duplicate_files": len(files) - len({file.digest for file in files}),
        "sources": describe_sources(files, skipped),
    }
    folder = ROOT / "dataset" / config.dataset_name / "json"
    with replace_folder(folder, durable=False) as new:
        write_rows(files, config.segment_len, new)
        (new / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    print_summary(meta, folder)


# ---- reading


# ---- splitting


# ---- measuring


def count(files: list[SourceFile], segment_len: int) -> dict[str, dict[str, int]]:
    """Per split: files with a window in it, windows, tokens of the windows, and those files' own tokens and bytes."""
    counts = {}
    for name, is_dev in (("train", False), ("dev", True)):
        chosen = [file for file in files if (file.in_dev == is_dev).any()]
        lengths = [(len(f.ids) - f.starts[f.in_dev == is_dev]).clip(max=segment_len) for f in chosen]
        counts[name] = {
            "files": len(chosen),
            "windows": sum(map(len, lengths)),
            "window_tokens": int(sum(map(sum, lengths))),
            "source_tokens": sum(len(file.ids) for file in chosen),
            "source_bytes": sum(file.n_bytes for file in chosen),
        }
    return counts


# ---- writing


def write_rows(files: list[SourceFile], segment_len: int, folder: Path) -> None:
    """One JSON row a window; `token_ids` comes first, which is what lets data.py read a row without a JSON parser."""
    import numpy as np

    head = b'{"token_ids": ['
    with (folder / "train.jsonl").open("wb") as train, (folder / "dev.jsonl").open("wb") as dev:
        for file in files:
            words = [b"%d" % token_id for token_id in file.ids.tolist()]
            text = b", ".join(words) + b", "
            at = np.cumsum([0, *(len(word) + 2 for word in words)]).tolist()  # token number -> offset in text
            tail = f'], "label": "{file.label}", "path": {json.dumps(file.path)}}}\n'.encode()
            ends = (file.starts + segment_len).clip(max=len(words)).tolist()
            rows = [
                head + text[at[start] : at[end] - len(b", ")] + tail
                for start, end in zip(file.starts.tolist(), ends, strict=True)
            ]
            train.writelines(itertools.compress(rows, (~file.in_dev).tolist()))
            dev.writelines(itertools.compress(rows, file.in_dev.tolist()))


def print_summary(meta: dict[str, Any], folder: Path) -> None:
    n_files = sum(len(source["files"]) for source in meta["sources"])
    reasons = Counter(reason for source in meta["sources"] for reason in source["skipped"].values())
    details = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))
    print(f"{n_files} files read, {reasons.total()} skipped{f' ({details})' * bool(details)}")
    print(f"{'':14}{'files':>8}{'windows':>12}{'window tokens':>16}{'source tokens':>16}{'source bytes':>16}")
    for label, splits in meta["languages"].items():
        for name, counts in splits.items():
            cells = "".join(f"{n:>{w},}" for n, w in zip(counts.values(), (8, 12, 16, 16, 16), strict=True))
            print(f"{label + ' ' + name:14}{cells}")
    for n, share in meta["contamination"][meta["flags"]["split_by"]].items():
        print(f"dev {n}-grams that stand in train: {'none to measure' if share is None else f'{share:.2%}'}")
    print(f"written: {folder}")


if __name__ == "__main__":
    run_command(main)
