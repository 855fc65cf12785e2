"""pass@k of a model on a file of problems: complete, judge, keep every sample, sum up."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from common.command import InputError
from evaluation.intervals import bootstrap_interval
from evaluation.pass_at_k import pass_at_k
from evaluation.samples import Sample, kinds, line_of, read_samples, shares, write_samples
from sandbox.problem_file import Problem
from sandbox.running import Judge, Verdict, in_parallel


class Generated(Protocol):
    """What `measure` needs of a completion; completion.settings.Completion has it."""

    text: str
    tokens: list[int]
    mean_log_prob: float
    stop_reason: str

    @property
    def finished(self) -> bool: ...


# (prefix and suffix of each completion that is wanted, and a name for each) -> (place in these lists, completion,
# name of the engine), as they come. The random numbers of a completion follow from its name and the seed.
Generate = Callable[[list[tuple[str, str]], list[str]], Iterable[tuple[int, Generated, str]]]


@dataclass(frozen=True)
class Sound:
    """A problem that its own solution passes here.

    Attributes:
        seconds: of processor time that a completion may take.
        before, after: what of the solution is given, on both sides of the completion.
    """

    problem: Problem
    seconds: int
    before: str = ""
    after: str = ""


def check_problems(judge: Judge, problems: list[Problem]) -> tuple[list[Sound], dict[str, Verdict]]:
    """The problems that can be judged on this machine, and of the others what their own solution got.

    Raises:
        InputError: there is none that can.
    """
    canonical = in_parallel(partial(judge.canonical, problem) for problem in problems)
    verdicts = list(_bar(canonical, "check the problems", len(problems)))
    sound = [Sound(p, judge.limit(v)) for p, v in zip(problems, verdicts, strict=True) if v.passed]
    if not sound:
        raise InputError(f"no problem's own solution passes; the first: {verdicts[0].kind}, {verdicts[0].detail}")
    return sound, {p.task_id: v for p, v in zip(problems, verdicts, strict=True) if not v.passed}


def single_lines(whole: Sound) -> Iterator[Sound]:
    """Each line of the solution in turn as a problem of its own; blank ones and comments are none.

    Single-line infilling, of Fried et al. 2023 (InCoder), section 4.1: all other lines are given.
    """
    lines = whole.problem.canonical_solution.split("\n")
    for number, line in enumerate(lines):
        if line.strip() and not line.lstrip().startswith("#"):
            problem = replace(
                whole.problem, task_id=f"{whole.problem.task_id}/line {number + 1}", canonical_solution=line
            )
            before, after = lines[:number], lines[number + 1 :]
            yield Sound(problem, whole.seconds, "".join(f"{each}\n" for each in before), "\n" + "\n".join(after))


def take_samples(judge: Judge, problems: list[Sound], n: int, path: Path, run: str, generate: Generate) -> list[Sample]:
    """n samples of each problem: those that the file holds already, and the others, which join it as they come.

    Raises:
        InputError: the file holds something else.
    """
    asked = {sound.problem.task_id for sound in problems}
    samples = [sample for sample in read_samples(path, run) if sample.task_id in asked]
    there = {(sample.task_id, sample.number) for sample in samples}
    missing = [(sound, i) for sound in problems for i in range(n) if (sound.problem.task_id, i) not in there]

    def work() -> Iterator[Callable[[], Sample]]:
        places = [(sound.problem.prompt + sound.before, sound.after) for sound, _ in missing]
        names = [f"{sound.problem.task_id} {number}" for sound, number in missing]
        for place, completion, engine in generate(places, names) if missing else ():
            yield partial(_judged, judge, *missing[place], completion, run, engine)

    path.parent.mkdir(parents=True, exist_ok=True)
    total = n * len(problems)
    with path.open("a", encoding="utf-8") as file, closing(_bar((), "complete and run", total, len(samples))) as bar:
        passed = sum(sample.verdict == "passed" for sample in samples)
        for sample in in_parallel(work()):
            file.write(line_of(sample))
            file.flush()
            samples.append(sample)
            passed += sample.verdict == "passed"
            bar.update()
            bar.set_postfix_str(f"pass@1 {passed / len(samples):.1%}")
    return samples


def judge_again(judge: Judge, problems: list[Sound], path: Path, run: str) -> list[Sample]:
    """The samples of a file with the verdicts that they get now; no model is needed. The file is replaced.

    Raises:
        InputError: the file holds no samples of this run.
    """
    sound = {each.problem.task_id: each for each in problems}
    samples = [sample for sample in read_samples(path, run) if sample.task_id in sound]
    if not samples:
        raise InputError(f"{path}: holds no samples to judge again; take them first, without --judge_again")
    work = (partial(_again, judge, sound[sample.task_id], sample) for sample in samples)
    again = list(_bar(in_parallel(work), "run", len(samples)))
    write_samples(path, again)
    return again


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
    result |= {"verdicts": kinds(samples), "shares": shares(samples)}
    result["engine"] = " and ".join(sorted({sample.engine for sample in samples} - {""})) or "unknown"
    result["mean_tokens"] = sum(sample.tokens for sample in samples) / len(samples)
    return result


def check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise InputError(
            f"pass@{k} cannot be had from {n} samples of a problem; take more with --n_samples {max(k, 1)}"
        )


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


def _judged(judge: Judge, sound: Sound, number: int, completion: Generated, run: str, engine: str) -> Sample:
    verdict = _verdict(judge, sound, completion.text)
    return Sample(
        run=run,
        task_id=sound.problem.task_id,
        completion=completion.text,
        mean_log_prob=round(completion.mean_log_prob, 4),
        tokens=len(completion.tokens),
        finished=completion.finished,
        looped=completion.stop_reason == "loop",
        verdict=verdict.kind,
        detail=verdict.detail,
        seconds=verdict.seconds,
        engine=engine,
        number=number,
    )


def _again(judge: Judge, sound: Sound, sample: Sample) -> Sample:
    verdict = _verdict(judge, sound, sample.completion)
    return replace(sample, verdict=verdict.kind, detail=verdict.detail, seconds=verdict.seconds)


def _verdict(judge: Judge, sound: Sound, text: str) -> Verdict:
    return judge.judge(sound.problem, sound.before + text + sound.after, sound.seconds)


def _bar(work: Iterable, description: str, total: int, initial: int = 0):
    from tqdm import tqdm

    return tqdm(work, description, total, initial=initial, unit="sample", leave=False, disable=None)
