"""Measure a model on a jsonl file: loss, perplexity, bits per byte and next-token accuracy; or whether its code works.

python evaluate.py --model_path model/distilgpt2_fine_tuned_coder --dataset_name source_code
python evaluate.py --model_path tiny --dataset_name stdlib --output result.json
python evaluate.py --model_path tiny --problems HumanEval.jsonl.gz       (pass@1; runs what the model writes, confined)
"""

import json
import math
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # which PYTHONSAFEPATH leaves out
from common.command import Flags, InputError, flag, folder_name, output_file, parse_flags, run_command
from common.files import atomic_write, dataset_file
from completion.engines.load_engine import ENGINE_PRECISIONS
from completion.settings import TEMPERATURE, TOKENS
from evaluation.loss import SingleCLMEvaluator
from evaluation.places import KINDS
from training.config import PRECISIONS

MOST_SAMPLES = 10_000  # of a problem


def spans_or_line(text: str) -> str:
    if text != "line" and not is_number(text, 100_000):
        raise ValueError("must be a number of spans, from 1 to 100,000, or `line` with --problems")
    return text


def numbers(text: str) -> str:
    if not all(is_number(part, MOST_SAMPLES) for part in text.split(",")):
        raise ValueError(f"must be numbers from 1 to {MOST_SAMPLES:,} with commas between, as in 1,10")
    return text


def is_number(text: str, most: int) -> bool:
    return text.isdecimal() and len(text) < 10 and 1 <= int(text) <= most  # int refuses a text of 5,000 digits


@dataclass
class EvaluateFlags(Flags):
    """Flags of evaluate.py."""

    model_path: str = flag("tiny", "a run folder, a model folder, a name as train.py's --model_select, or a Hub id")
    dataset_name: str = flag("source_code", "folder below dataset/ that convert.py has written", type=folder_name)
    split: str = flag("dev", "which of its files", choices=("dev", "train"))
    file_path: str = flag("", "measure on this jsonl file instead")
    max_seq_length: int | None = flag(
        None, "tokens per sequence; else as the model was trained", type=int, at_least=2, at_most=1_000_000
    )
    dev_batch_size: int = flag(
        8,
        "sequences per forward pass; on a GPU as many more as fit, on a CPU fewer if the vocabulary is large; the "
        "result does not depend on it",
        at_least=1,
        at_most=1_000_000,
    )
    dev_windows: int = flag(0, "measure on that many windows, always the same ones; 0: all", at_least=0, at_most=10**12)
    precision: str = flag(
        "auto",
        "auto: bf16 or fp16 where the hardware is fast at it; with --problems as for interact.py, also q8_0 and f16",
        choices=ENGINE_PRECISIONS,
    )
    output: str | None = flag(None, "write the results as JSON to this file too", type=output_file())
    problems: str | None = flag(
        None,
        "complete the problems of this file, in the format of HumanEval, HumanEval+ or MBPP+, RUN the completions, and "
        "report pass@k",
        type=str,
    )
    infill: str = flag(
        "",
        "N: take N spans of each of four kinds out of the dataset's held-out files and have them filled in, with and "
        "without suffix and context; with --file_path the first N places of a jsonl file of RepoEval, CrossCodeEval or "
        "HumanEval-Infilling; line: with --problems, each line of the solutions in turn",
        type=spans_or_line,
    )
    infill_kind: str | None = flag(None, "with --infill N: spans of this kind alone", choices=KINDS, type=str)
    repository: str | None = flag(
        None,
        "with --infill N: take the context from this folder's source files; else from the dataset's; with --file_path "
        "from the repositories in this folder, which have the names that the file gives them",
        type=str,
    )
    context_tokens: int = flag(
        500, "with --infill N: most tokens of context; 0: measure without alone", at_least=0, at_most=1_000_000
    )
    no_infill: bool = flag(False, "with --infill line, do not show the model the lines after it")
    max_problems: int = flag(
        0, "only the first so many problems of the file, or lines of their solutions; 0: all", at_least=0
    )
    n_samples: int = flag(1, "completions of each problem: 1 is greedy", at_least=1, at_most=MOST_SAMPLES)
    k: str = flag("1", "which pass@k to report, as in 1,10", type=numbers)
    temperature: float = flag(0.2, "of sampling, where --n_samples is above 1", **TEMPERATURE)
    max_new_tokens: int = flag(512, "most tokens of a completion of a problem", **TOKENS)
    stop: str = flag(
        "block", "where it ends: with the function, or at HumanEval's stop words", choices=("block", "words")
    )
    seed: int = flag(0, "of sampling", at_least=0, at_most=2**31)
    samples: str | None = flag(
        None,
        "keep the completions in this file and go on with what it holds; else one in .cache",
        type=output_file(".jsonl"),
    )
    judge_again: bool = flag(False, "run the completions that --samples holds once more, without the model")
    allow_weak_sandbox: bool = flag(False, "run them even where nothing but limits on time and memory holds them")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_samples > 1 and not self.temperature:
            raise InputError("--temperature 0 makes all samples of a problem equal; leave out --n_samples, or raise it")


def main() -> None:
    flags = parse_flags(EvaluateFlags, __doc__)
    if flags.infill and (flags.infill == "line") != bool(flags.problems):
        raise InputError("--infill line takes lines out of the solutions of --problems, --infill N spans out of files")
    if flags.problems:
        evaluate_problems(flags)
        return
    if flags.infill:
        evaluate_infill(flags)
        return
    if flags.precision not in PRECISIONS:
        raise InputError(f"--precision {flags.precision} is for --problems and --infill; a loss needs PyTorch's")
    file_path = Path(flags.file_path) if flags.file_path else dataset_file(flags.dataset_name, flags.split)

    from common.devices import choose_device, keep_freed_memory
    from data import SrcCodeDataset
    from model import GPTSingleHead, use_fast_kernels

    keep_freed_memory()
    model = GPTSingleHead.load(flags.model_path)
    if flags.max_seq_length:
        model.max_seq_length = flags.max_seq_length
    dataset = SrcCodeDataset(file_path, model)
    model.to(choose_device())
    use_fast_kernels(model.gpt)
    evaluator = SingleCLMEvaluator(
        dataset, batch_size=flags.dev_batch_size, precision=flags.precision, windows=flags.dev_windows
    )
    results = evaluator(model)
    if not math.isfinite(results["loss"]):
        raise InputError(f"{flags.model_path}: its loss is not finite; try --precision fp32, or another model")
    windows = min(flags.dev_windows or len(dataset), len(dataset))
    write_result(flags, {"model": flags.model_path, "file": str(file_path), "windows": windows, **results})
    print(f"{flags.model_path} on {windows} windows of {file_path}")
    for name, value in results.items():
        print(f"  {name:<18} {value:>14,}" if name == "tokens" else f"  {name:<18} {value:>14.4f}")


def evaluate_problems(flags: EvaluateFlags) -> None:
    from evaluation.pass_at_k import ProblemSettings, measure_problems, print_summary
    from evaluation.published import PROBLEM_FILES, published

    settings = ProblemSettings(**{field.name: getattr(flags, field.name) for field in fields(ProblemSettings)})
    result, refused = measure_problems(
        Path(flags.problems),
        flags.model_path,
        settings,
        sorted({int(k) for k in flags.k.split(",")}),
        samples=Path(flags.samples) if flags.samples else None,
        max_problems=flags.max_problems,
        again=flags.judge_again,
        allow_weak_sandbox=flags.allow_weak_sandbox,
    )
    write_result(flags, {"model": flags.model_path, "flags": asdict(flags), **result})
    how = "greedy" if flags.n_samples == 1 else f"{flags.n_samples} samples at temperature {flags.temperature}"
    what = f"single lines{' without the suffix' * flags.no_infill}" if flags.infill else f"--stop {flags.stop}"
    print(f"{flags.model_path} on {flags.problems}: {how}, {what}")
    print_summary(result, refused)
    if not flags.infill:
        for line in published(flags.model_path, PROBLEM_FILES.get(result["problems_sha256"]), "pass@1"):
            print(line)


def evaluate_infill(flags: EvaluateFlags) -> None:
    from evaluation.infill import Contexts, as_json, fill_in, infill_table, summarise, until_stopped
    from evaluation.likelihood import load_measured, score_texts
    from evaluation.places import KINDS, read_places, spans_of_dataset
    from evaluation.published import benchmark_of_places, published

    number = int(flags.infill)
    kinds = (flags.infill_kind,) if flags.infill_kind else KINDS
    if flags.file_path:
        spans, what = read_places(Path(flags.file_path), number), flags.file_path
    else:
        spans, what = (
            spans_of_dataset(flags.dataset_name, number, flags.seed, kinds),
            f"{flags.dataset_name}'s held-out files",
        )
    engine, model = load_measured(flags.model_path, flags.precision)
    contexts = Contexts(engine, flags.repository, flags.context_tokens)
    filled = fill_in(
        engine,
        spans,
        contexts if contexts.any_for(spans) else None,
        lambda prompt, text, at_line_end: score_texts(model, [prompt], [text], at_line_end)[0].bits,
    )
    places = until_stopped(filled, len(spans))
    summary = summarise(places)
    result = {"infill": summary, "places": as_json(places)}
    write_result(flags, {"model": flags.model_path, "flags": asdict(flags), **result})
    print(f"{flags.model_path}, {engine.name}: spans of {what}; in brackets the 95 % interval")
    if not engine.vocabulary.fim_words:
        print("  it has not learned to fill in the middle: the suffix only says where to stop")
    print(infill_table(summary))
    if flags.file_path:
        for line in published(flags.model_path, benchmark_of_places(Path(flags.file_path)), "exact"):
            print(line)


def write_result(flags: EvaluateFlags, result: dict) -> None:
    """Before anything is printed: the reader of what is printed may leave, as `head` does."""
    if flags.output:
        with atomic_write(Path(flags.output)) as file:
            json.dump(result, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    run_command(main)
