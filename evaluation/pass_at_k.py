"""pass@k of a model on a file of problems, as evaluate.py --problems reports it."""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from common.command import InputError
from common.files import ROOT, lock
from common.model_files import find_pretrained
from completion.complete import complete_all, seed_of
from completion.cursor import Cursor
from completion.engines.load_engine import load_engine
from completion.settings import Completion
from completion.stop_rules.stop_rule import StopRule, make_stop_rule, unfinished
from dataset.problem_file import read_problems
from evaluation.intervals import bootstrap_interval
from evaluation.problems import Task, before_any, stop_rule_of, tasks_of, verified
from evaluation.samples import Generate, Sample, judge_again, take_samples
from sandbox.sandbox import Sandbox, Verdict

# The benchmark's own, of Chen et al. 2021, section 3.1.
STOP_WORDS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
PACKAGES = ("torch", "transformers", "numpy", "xllamacpp")


@dataclass(frozen=True)
class ProblemSettings:
    """How problems are completed.

    Attributes:
        n_samples: completions of each problem: one greedy completion, or several at `temperature`.
        stop: "block": stop like interact.py; "words": stop at STOP_WORDS.
        infill: empty, or "line": each line of a solution is taken out in turn and filled in between the others.
        no_infill: with "line", hide the lines after it from the model.
        precision: of the engine; recorded because it may change the completions.
    """

    n_samples: int = 1
    temperature: float = 0.2
    max_new_tokens: int = 512
    stop: str = "block"
    seed: int = 0
    precision: str = "auto"
    infill: str = ""
    no_infill: bool = False

    def as_used(self) -> dict[str, Any]:
        settings = asdict(self) | {"temperature": self.temperature if self.n_samples > 1 else 0.0}
        if not self.infill:
            del settings["infill"], settings["no_infill"]
        return settings


def measure_problems(
    path: Path,
    model_path: str,
    settings: ProblemSettings,
    ks: list[int],
    *,
    samples: Path | None = None,
    max_problems: int = 0,
    again: bool = False,
    allow_weak_sandbox: bool = False,
) -> tuple[dict[str, Any], dict[str, Verdict]]:
    """Complete the problems of a file and run the completions. Return the summary and the refused problems.

    Args:
        samples: the jsonl file of earlier samples, to which new ones are added; default: a file below .cache.
        max_problems: use only the first N problems of the file, or lines of their solutions; 0: all.
        again: run the completions in the file once more, without the model.
    Raises:
        InputError: a fault of the problems, of the samples or of a k; no sandbox on this machine; or another process
            uses the samples.
    """
    for k in ks:
        check_k(k, settings.n_samples)
    problems, problems_hash = read_problems(path)
    fingerprint = model_fingerprint(model_path)
    made_of = {"model": fingerprint, "problems": problems_hash, **settings.as_used()}
    if settings.n_samples > 1:
        del made_of["n_samples"]  # more of the same may join them
    run = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    samples = samples or ROOT / ".cache" / "samples" / f"{run}.jsonl"
    with lock(samples.with_name(f"{samples.name}.lock")):
        sandbox = Sandbox(allow_weak_sandbox)
        print(f"completions are run on this machine, in a sandbox of level {sandbox.level}", flush=True)
        tasks, refused = verified(sandbox, tasks_of(problems, bool(settings.infill), max_problems))
        if again:
            taken = judge_again(sandbox, tasks, samples, run)
        else:
            taken = take_samples(sandbox, tasks, settings.n_samples, samples, run, generate_with(model_path, settings))
    result = summarise(taken, ks) | {
        "model_fingerprint": fingerprint,
        "problems_file": str(path),
        "problems_sha256": problems_hash,
        "refused": {name: f"{verdict.kind}: {verdict.detail}" for name, verdict in refused.items()},
        "settings": settings.as_used(),
        "samples": str(samples),
        "sandbox": sandbox.level,
        "versions": {"python": platform.python_version(), **_versions()},
    }
    return result, refused


def generate_with(model_path: str, settings: ProblemSettings) -> Generate:
    """Completes tasks, many at once: one candidate each, since the first of several would be the greedy one.

    The model is loaded when there is something to complete. The random numbers of a sample follow from the seed, the
    task and the sample's number alone.
    """

    def generate(tasks: list[Task], numbers: list[int]) -> Iterator[tuple[int, Completion, str]]:
        engine = load_engine(model_path, settings.precision)
        show_suffix = bool(settings.infill) and not settings.no_infill
        found = complete_all(
            engine,
            [Cursor(task.prefix, task.after if show_suffix else "") for task in tasks],
            seeds=[seed_of(settings.seed, task.task_id, n) for task, n in zip(tasks, numbers, strict=True)],
            rule_of=_rule_of(settings),
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.as_used()["temperature"],
        )
        for index, (completion,) in found:
            yield index, completion, engine.name

    return generate


def _rule_of(settings: ProblemSettings) -> Callable[[str], StopRule]:
    if settings.infill:
        return lambda prompt: make_stop_rule("line", "", "python")  # one line, even where that opens a block
    if settings.stop == "block":
        return stop_rule_of
    return lambda prompt: before_any(STOP_WORDS) if unfinished(prompt, "python") else stop_rule_of(prompt)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that one of k samples is right, estimated without bias from n samples of which c are.

    1 - C(n - c, k) / C(n, k) as a product, which neither overflows nor cancels (Chen et al. 2021, equation 1).
    """
    if n - c < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def summarise(samples: list[Sample], ks: Iterable[int]) -> dict[str, Any]:
    """pass@k for each k with its 95 % interval, the verdicts and shares of the samples.

    Raises:
        InputError: k above the number of samples of a problem.
    """
    taken = Counter(sample.task_id for sample in samples)
    right = Counter(sample.task_id for sample in samples if sample.verdict == "passed")
    n = min(taken.values())
    result: dict[str, Any] = {"problems": len(taken), "samples_per_problem": n, "pass_at_k": {}}
    for k in ks:
        check_k(k, n)
        values = [pass_at_k(taken[task], right[task], k) for task in taken]
        low, high = bootstrap_interval(values)
        result["pass_at_k"][str(k)] = {"value": sum(values) / len(values), "low": low, "high": high}
    result["verdicts"] = dict(Counter(sample.verdict for sample in samples).most_common())
    shares = ("parses", "runs", "finished", "repeats")
    result["shares"] = {name: sum(getattr(s, name) for s in samples) / len(samples) for name in shares}
    result["engine"] = " and ".join(sorted({sample.engine for sample in samples} - {""})) or "unknown"
    result["mean_tokens"] = sum(sample.tokens for sample in samples) / len(samples)
    return result


def check_k(k: int, n: int) -> None:
    if k > n:
        raise InputError(f"pass@{k} cannot be estimated from {n} samples of a problem; take more with --n_samples {k}")


def print_summary(result: dict[str, Any], refused: dict[str, Verdict]) -> None:
    for k, value in result["pass_at_k"].items():
        between = f"95 % interval {value['low']:.1%} to {value['high']:.1%}"
        print(f"  pass@{k:<4} {value['value']:>7.1%}   {between}, {result['problems']} problems")
    print("  " + ", ".join(f"{number} {kind}" for kind, number in result["verdicts"].items()))
    parses, runs, finished, repeats = result["shares"].values()
    print(f"  {parses:.1%} parse, {runs:.1%} run, {finished:.1%} end by themselves, {repeats:.1%} repeat themselves")
    if refused:
        names = ", ".join(list(refused)[:3]) + ", ..." * (len(refused) > 3)
        print(f"  {len(refused)} more problems refused, whose own solution does not pass here: {names}")


def model_fingerprint(path: str) -> str:
    """Sixteen hex digits of a model's files: weights, configuration and vocabulary.

    Raises:
        InputError: as `find_pretrained`.
    """
    digest = hashlib.sha256()
    for file in sorted(find_pretrained(path).iterdir()):
        if file.suffix in (".safetensors", ".bin", ".json", ".txt"):
            digest.update(file.name.encode())
            with file.open("rb") as content:
                while block := content.read(1 << 24):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
