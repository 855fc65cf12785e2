"""Cut source files into windows of token ids: dataset/<dataset_name>/json/{train,dev}.jsonl and meta.json.

python dataset/convert.py --source stdlib --tokenizer tiny --dataset_name stdlib   # this Python's own library
python dataset/convert.py --source ~/my_project --dataset_name my_project          # any folder of .py or .java files
python dataset/convert.py                      # TheAlgorithms in dataset/Python and dataset/Java, GPT-2's vocabulary
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.command import Flags, InputError, flag, folder_name, output_folder, parse_flags, run_command
from common.files import ROOT, dataset_file, lock, recover_folder, replace_folder
from common.model_files import fingerprint, load_tokenizer
from dataset.format import FILES, FORMAT_VERSION, Counts, FrequentToken, counts_table, read_meta
from dataset.rows import write_rows
from dataset.sources import (
    DEFAULT_SOURCES,
    SkippedFile,
    SourceFile,
    find_sources,
    say_left_out,
    source_root,
    source_version,
)
from dataset.splits import choose_split, measure_splits
from dataset.windows import tokenize_files

STRIDE = 10
FREQUENT_TOKENS = 50  # in meta.json


@dataclass
class ConvertConfig(Flags):
    segment_len: int = flag(
        254, "tokens of a window; 256 with the control word and <eos>", at_least=1, at_most=1_000_000
    )
    stride: int = flag(STRIDE, "tokens between the starts of two windows of a file", at_least=1, at_most=1_000_000)
    whole_files: bool = flag(
        False,
        "for your own project: every token of every file is in exactly one window (the stride becomes --segment_len); "
        "without it, files shorter than the stride are left out",
    )
    drop_clones: bool = flag(
        False, "leave out of train every file if at least half of its 20-grams of tokens also occur in dev"
    )
    keep_split: str = flag(
        "",
        "name of an earlier dataset of the same sources: its files stay in train or in dev, and only new files are "
        "drawn, so that a model trained on it can be trained further and measured",
        type=folder_name,
    )
    dev_size: float = flag(0.1, "fraction of each language's windows for dev.jsonl", above=0, below=1)
    source: tuple[str, ...] = flag(
        DEFAULT_SOURCES,
        "folders or files of .py and .java; `stdlib` is the running Python's own library without its tests; "
        "of the default folders, those that exist are used",
        type=str,
        nargs="+",
    )
    include_ignored: bool = flag(
        False, "also take installed packages, virtual environments, build output and files that git ignores"
    )
    tokenizer: str = flag("gpt2", "model name, Hub id or local folder of the tokenizer")
    dataset_name: str = flag(
        "source_code", "the result is dataset/<dataset_name>/json; it replaces an older one", type=folder_name
    )
    seed: int = flag(122, "random seed for the choice of dev files", at_least=0, below=2**63)
    num_workers: int = flag(0, "threads for tokenizing; 0: all cores", at_least=0, at_most=256)
    split_by: str = flag(
        "file",
        "what is completely in train or completely in dev: a file, all files of a folder, or one window "
        "(`segment`: windows of dev overlap windows of train, so dev measures memory)",
        choices=("file", "folder", "segment"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.whole_files:
            if self.stride not in (STRIDE, self.segment_len):
                raise InputError(
                    f"--stride {self.stride}: contradicts --whole_files, which needs --segment_len's value"
                )
            self.stride = self.segment_len
        if (self.drop_clones or self.keep_split) and self.split_by == "segment":
            name = "drop_clones" if self.drop_clones else "keep_split"
            raise InputError(f"--{name}: has no meaning with --split_by segment, which puts one file in both splits")


def main() -> None:
    convert(parse_flags(ConvertConfig, __doc__))


def convert(config: ConvertConfig) -> None:
    """Write the dataset, replacing an older one, and print what it contains."""
    folder = ROOT / "dataset" / config.dataset_name / "json"
    try:
        output_folder(str(folder.parent))
    except ValueError as error:
        raise InputError(f"{folder.parent}: {error}; choose another --dataset_name") from None
    with lock(folder.with_name("convert.lock")):
        recover_folder(folder)  # a killed convert.py may have left it half replaced
        check_output(folder, config.source)
        _convert(config, folder)


def _convert(config: ConvertConfig, folder: Path) -> None:
    if config.num_workers:
        os.environ["RAYON_NUM_THREADS"] = str(config.num_workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    found = find_sources(config.source, config.include_ignored)
    tokenizer = load_tokenizer(config.tokenizer)
    files, skipped = tokenize_files(found.files, tokenizer, config.stride, config.whole_files)
    skipped += found.skipped
    if not files:
        reasons = ", ".join(sorted({file.reason for file in skipped}))
        raise InputError(f"{' '.join(config.source)}: no file can be used ({reasons}); name other sources")
    skipped += split_languages(files, config)
    if config.drop_clones:
        skipped += drop_clones(files)
    languages = by_language(files)
    meta = {
        "format_version": FORMAT_VERSION,
        # without num_workers, which does not change the result
        "flags": {name: value for name, value in asdict(config).items() if name != "num_workers"},
        "tokenizer": {
            "name": config.tokenizer,
            "fingerprint": fingerprint(tokenizer),
            "vocab_size": tokenizer.get_vocab_size(),
        },
        "languages": {label: count(part, config.segment_len) for label, part in languages.items()},
        "contamination": measure_splits(languages, config.segment_len, config.split_by, config.dev_size, config.seed),
        "duplicate_files": len(files) - len({file.digest for file in files}),
        "frequent_tokens": frequent_tokens(files),
        "sources": describe_sources(config.source, files, skipped, found.left_out),
    }
    with replace_folder(folder, durable=False) as new:
        write_rows(files, config.segment_len, new)
        (new / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    print_summary(meta, files, found.left_out)
    print(f"written: {folder}")


def check_output(folder: Path, sources: Sequence[str]) -> None:
    """
    Raises:
        InputError: replacing the folder would delete files that convert.py did not write.
    """
    for source in sources:
        root = Path(os.path.realpath(source_root(source)))
        if folder in (root, *root.parents):
            raise InputError(f"--source {source}: is in {folder}, which is replaced; move it or choose --dataset_name")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder}: is not a folder; move it away or choose another --dataset_name")
    if foreign := sorted({file.name for file in folder.glob("*")} - set(FILES)):
        raise InputError(
            f"{folder}: holds {foreign[0]}, which convert.py has not written; move it away or choose another "
            "--dataset_name"
        )


def by_language(files: list[SourceFile]) -> dict[str, list[SourceFile]]:
    labels = sorted({file.label for file in files})
    return {label: [file for file in files if file.label == label] for label in labels}


def split_languages(files: list[SourceFile], config: ConvertConfig) -> list[SkippedFile]:
    """Fill in the files' `in_dev`. Remove the files of languages that have too few for a split, and return those.

    Raises:
        InputError: no language has enough files.
    """
    known, skipped, errors = {}, [], []
    if config.keep_split:
        for source in read_meta(dataset_file(config.keep_split, "dev").parent)["sources"]:
            known |= {path: path in source["dev_files"] for path in source["files"]}
    for label, of_language in by_language(files).items():
        try:
            in_dev = choose_split(of_language, config.split_by, config.dev_size, config.seed, known)
        except InputError as error:
            errors.append(error)
            skipped += remove(set(of_language), files, f"too few {label} files for a train and a dev split")
            continue
        for file, mask in zip(of_language, in_dev, strict=True):
            file.in_dev = mask
    if not files:
        raise errors[0]
    return skipped


def drop_clones(files: list[SourceFile]) -> list[SkippedFile]:
    """Remove the train files that nearly copy files in dev, and return them.

    Raises:
        InputError: no file of a language would be left in train.
    """
    from dataset.contamination import find_clones

    skipped = []
    for label, of_language in by_language(files).items():
        clones = set(find_clones(of_language))
        if all(file in clones or file.in_dev.all() for file in of_language):
            raise InputError(f"{label}: every file in train is nearly a copy of files in dev; add files")
        skipped += remove(clones, files, "nearly a copy of files in dev")
    return skipped


def remove(some: set[SourceFile], files: list[SourceFile], reason: str) -> list[SkippedFile]:
    """Remove some files from the list `files`; return them with the reason."""
    removed = [SkippedFile(file.source, file.path, reason) for file in files if file in some]
    files[:] = [file for file in files if file not in some]
    return removed


# ---- measuring ------------------------------------------------------------------------------------------------------


def count(files: list[SourceFile], segment_len: int) -> dict[str, Counts]:
    counts = {}
    for name, is_dev in (("train", False), ("dev", True)):
        chosen = [file for file in files if (file.in_dev == is_dev).any()]
        lengths = [(len(f.ids) - f.starts[f.in_dev == is_dev]).clip(max=segment_len) for f in chosen]
        counts[name] = {
            "files": len(chosen),
            "windows": sum(map(len, lengths)),
            "short_windows": sum(int((of_file < segment_len).sum()) for of_file in lengths),
            "window_tokens": sum(int(of_file.sum()) for of_file in lengths),
            "source_tokens": sum(len(file.ids) for file in chosen),
            "source_bytes": sum(file.n_bytes for file in chosen),
        }
    return counts


def frequent_tokens(files: list[SourceFile]) -> list[FrequentToken]:
    import numpy as np

    counts = np.zeros(1 + max(file.ids.max() for file in files), dtype=np.int64)
    for file in files:
        tokens, of_file = np.unique(file.ids, return_counts=True)
        counts[tokens] += of_file
    frequent = np.argsort(-counts, kind="stable")[:FREQUENT_TOKENS]
    return [{"id": int(token), "count": int(counts[token])} for token in frequent if counts[token]]


def describe_sources(
    names: Sequence[str], files: list[SourceFile], skipped: list[SkippedFile], left_out: list[SkippedFile]
) -> list[dict[str, Any]]:
    """meta.json's list of sources: name, version, files with their number of tokens, and what was left out and why."""
    described = {}
    for name in names:
        described[name] = {"source": name, "version": source_version(name), "files": {}, "dev_files": []}
        described[name] |= {"skipped": {}, "left_out": {}}
    for file in files:
        described[file.source]["files"][file.path] = len(file.ids)
        if file.in_dev.all():
            described[file.source]["dev_files"].append(file.path)
    for part, skipped_files in (("skipped", skipped), ("left_out", left_out)):
        for file in skipped_files:
            described[file.source][part][file.path] = file.reason
    return [source for source in described.values() if source["files"] or source["skipped"] or source["left_out"]]


# ---- printing -------------------------------------------------------------------------------------------------------


def print_summary(meta: dict[str, Any], files: list[SourceFile], left_out: list[SkippedFile]) -> None:
    reasons = Counter(reason for source in meta["sources"] for reason in source["skipped"].values())
    details = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))
    print(f"{len(files)} files read, {reasons.total()} skipped{f' ({details})' * bool(details)}")
    if left_out:
        print(say_left_out(left_out))
    for label, splits in meta["languages"].items():
        largest = max((file for file in files if file.label == label), key=lambda file: len(file.starts))
        share = len(largest.starts) / sum(counts["windows"] for counts in splits.values())
        if share > 0.5:
            print(f"note: {largest.path} alone gives {share:.0%} of the {label} windows; is it generated?")
    print(counts_table(meta["languages"]))
    for n, share in meta["contamination"][meta["flags"]["split_by"]].items():
        print(f"dev {n}-grams that occur in train: {'none to measure' if share is None else f'{share:.2%}'}")


if __name__ == "__main__":
    run_command(main)
