"""Look at a dataset, or at the curves of training runs: tables on the terminal, charts as PNG files.

python analysis.py data --dataset_name stdlib                       what a dataset holds
python analysis.py runs model/demo                                  one run; charts go to model/demo/figures
python analysis.py runs model/a model/b --output figures            several runs in one chart
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from common import ROOT, InputError, Parser, atomic_write, dataset_file, run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart (jfly.uni-koeln.de/color), without the yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# file name: scalar, label of its axis, whether a logarithmic axis serves it
CURVES = {
    "train_loss": ("loss_train", "training loss (nats per token)", False),
    "dev_loss": ("loss_dev", "dev loss (nats per token)", False),
    "dev_eval_scores": ("eval_perplexity_dev", "dev perplexity", True),
    "best_score_perplexity": ("best_score_for_perplexity", "best score (minus the dev perplexity)", False),
    "learning_rate": ("lr", "learning rate", False),
    "grad_norm": ("grad_norm", "gradient norm before clipping", True),
}


def main() -> None:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="data | runs")
    data = commands.add_parser("data", description="what a dataset holds")
    data.add_argument("--dataset_name", default="source_code", help="folder below dataset/ that convert.py has written")
    data.add_argument("--output", type=Path, help="folder for the charts; else dataset/<dataset_name>/figures")
    runs = commands.add_parser("runs", description="the curves of training runs")
    runs.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of TensorBoard files")
    runs.add_argument("--names", nargs="+", help="what to call the runs; else by their folders")
    runs.add_argument("--output", type=Path, help="folder for the charts; else figures in the first run's folder")
    flags = parser.parse_args()
    if flags.command == "data":
        analyse_data(flags.dataset_name, flags.output)
    else:
        analyse_runs(flags.runs, flags.names, flags.output)


# ---- data -----------------------------------------------------------------------------------------------------------


def analyse_data(dataset_name: str, output: Path | None) -> None:
    train_file = dataset_file(dataset_name, "train")
    meta = read_meta(train_file.with_name("meta.json"))
    tokens = Counter()
    for split in ("train", "dev"):
        tokens += count_tokens(dataset_file(dataset_name, split), meta["flags"]["stride"])
    lengths = [count for source in meta["sources"] for count in source["files"].values()]
    print_features(dataset_name, meta, lengths)
    words = [(display_word(meta, token), count / tokens.total()) for token, count in tokens.most_common(25)]
    print("\nmost frequent tokens: " + "  ".join(f"{word} {share:.1%}" for word, share in words[:12]))

    folder = output or ROOT / "dataset" / dataset_name / "figures"
    save(histogram(lengths, f"{dataset_name}: tokens per file"), folder / "tokens_per_file.png")
    save(bars(words, f"{dataset_name}: most frequent tokens"), folder / "frequent_tokens.png")


def read_meta(path: Path) -> dict:
    """meta.json of a dataset.

    Raises:
        InputError: there is none, or it is not as convert.py writes it.
    """
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if {"flags", "languages", "sources", "contamination"} <= meta.keys():
            return meta
    except (OSError, ValueError, AttributeError):
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
    for length, share in meta["contamination"].items():
        print(f"dev {length}-grams that stand in train: {'none measured' if share is None else f'{share:.2%}'}")


def display_word(meta: dict, token: int) -> str:
    """A token as text, with its white space made visible; its number where the tokenizer cannot be had."""
    from hub import load_tokenizer

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


# ---- runs -----------------------------------------------------------------------------------------------------------


def analyse_runs(runs: list[Path], names: list[str] | None, output: Path | None) -> None:
    names = names or [run.resolve().name for run in runs]
    if len(names) != len(runs) or len(set(names)) < len(names):
        raise InputError(f"{len(runs)} runs named {', '.join(names)}; give --names, one and another for each")
    curves = {name: read_run(run) for name, run in zip(names, runs, strict=True)}
    folder = output or runs[0] / "figures"
    print_scores(curves)
    for file, (scalar, label, is_log) in CURVES.items():
        drawn = {name: scalars[scalar] for name, scalars in curves.items() if scalar in scalars}
        if drawn:
            save(line_chart(drawn, label, is_log), folder / f"{file}.png")


def read_run(run: Path) -> dict[str, dict[int, float]]:
    """Scalars of a run: name -> {optimizer step: value}, also of a run that goes on, or that was killed and restarted.

    Raises:
        InputError: no such folder, or no readable TensorBoard file in it.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    if not run.is_dir():
        raise InputError(f"{run}: no such folder; name a run folder, as model/<run_name>")
    folder = run / "tensorboard" if (run / "tensorboard").is_dir() else run
    scalars: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("*tfevents*"), key=lambda file: (file.stat().st_mtime_ns, file.name)):
        events = list(EventFileLoader(str(file)).Load())
        for event in events:
            _take(event, scalars)
        if len(events) < _count_records(file):
            print(f"note: {file}: torn or empty; {len(events)} whole records are used", file=sys.stderr)
    if not scalars:
        raise InputError(f"{folder}: holds no TensorBoard file with scalars; has the run logged yet?")
    return scalars


def _count_records(file: Path) -> int:
    """Records that a TensorBoard file has begun, at least 1: TensorFlow's record format, 8 bytes of length, a checksum
    of 4, the data, a checksum of 4 (tensorflow.org/tutorials/load_data/tfrecord)."""
    content, records, start = file.read_bytes(), 0, 0
    while start < len(content):
        start += 16 + int.from_bytes(content[start : start + 8], "little")
        records += 1
    return max(records, 1)


def _take(event, scalars: dict[str, dict[int, float]]) -> None:
    """Add an event's values. A restarted process says from which step on its predecessor's values are void."""
    from tensorboard.compat.proto.event_pb2 import SessionLog
    from tensorboard.util.tensor_util import make_ndarray

    if event.HasField("session_log") and event.session_log.status == SessionLog.START:
        for curve in scalars.values():
            for step in [step for step in curve if step >= event.step]:
                del curve[step]
    for value in event.summary.value:
        number = value.simple_value
        if value.HasField("tensor"):
            array = make_ndarray(value.tensor)
            if array.size != 1 or array.dtype.kind not in "fiu":
                continue
            number = array.item()
        scalars.setdefault(value.tag, {})[event.step] = number


def print_scores(curves: dict[str, dict[str, dict[int, float]]]) -> None:
    width = max(map(len, curves)) + 2
    print(
        f"{'':<{width}}{'steps':>8}{'train loss':>12}{'dev loss':>10}{'dev perplexity':>16}{'best':>10}{'at step':>9}"
    )
    for name, scalars in curves.items():
        perplexity = scalars.get("eval_perplexity_dev", {})
        last = [list(scalars.get(tag, {}).values())[-1:] for tag in ("loss_train", "loss_dev")]
        train_loss, dev_loss = (f"{values[0]:.4f}" if values else "-" for values in last)
        steps = max(step for curve in scalars.values() for step in curve)
        final = f"{list(perplexity.values())[-1]:.4f}" if perplexity else "-"
        best = min(perplexity, key=perplexity.__getitem__) if perplexity else None
        best_text = f"{perplexity[best]:.4f}" if perplexity else "-"
        print(f"{name:<{width}}{steps:>8,}{train_loss:>12}{dev_loss:>10}{final:>16}{best_text:>10}{best or '-':>9}")


# ---- charts ---------------------------------------------------------------------------------------------------------


def _figure() -> "tuple[Figure, object]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def line_chart(curves: dict[str, dict[int, float]], label: str, is_log: bool) -> "Figure":
    """One line a run, against optimizer steps."""
    figure, axes = _figure()
    for i, (name, curve) in enumerate(curves.items()):
        marker = "o" if len(curve) < 30 else None
        axes.plot(
            list(curve), list(curve.values()), color=COLOURS[i % len(COLOURS)], label=name, marker=marker, markersize=3
        )
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(label)
    if is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter("{x:,g}")
    if len(curves) > 1:
        figure.legend(loc="outside right upper", frameon=False)
    else:
        axes.set_title(next(iter(curves)))
    return figure


def histogram(lengths: list[int], title: str) -> "Figure":
    """Files by their number of tokens, on a logarithmic axis."""
    import numpy as np

    figure, axes = _figure()
    axes.hist(lengths, bins=np.geomspace(max(min(lengths), 1), max(lengths) + 1, 40), color=COLOURS[0])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel("tokens in the file")
    axes.set_ylabel("files")
    axes.set_title(title)
    return figure


def bars(words: list[tuple[str, float]], title: str) -> "Figure":
    """Shares of words as horizontal bars, the most frequent on top."""
    figure, axes = _figure()
    figure.set_size_inches(7, 6)
    axes.barh(range(len(words)), [100 * share for _, share in words], color=COLOURS[0])
    axes.set_yticks(range(len(words)), [word for word, _ in words], fontfamily="monospace", parse_math=False)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("share of all tokens (%)")
    axes.set_title(title)
    return figure


def save(figure: "Figure", path: Path) -> None:
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150)
    print(path)


if __name__ == "__main__":
    run_command(main)
