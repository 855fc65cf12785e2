"""A file of samples: one JSON line for each completion with its verdict, so that an interrupted run can continue."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypedDict

from common.command import InputError
from common.files import atomic_write, read_input
from common.json_files import parse_json
from evaluation.problems import Task, progress
from sandbox.sandbox import Sandbox, in_parallel

SHORTEST_REPEATED = 10  # characters


class Generated(Protocol):
    """What a sample needs of a completion; completion.settings.Completion has it."""

    text: str
    tokens: list[int]
    mean_log_prob: float
    stop_reason: str

    @property
    def finished(self) -> bool: ...


# (tasks to complete, the sample number for each) -> yields (index in these lists, completion, name of the engine)
Generate = Callable[[list[Task], list[int]], Iterable[tuple[int, Generated, str]]]


@dataclass(frozen=True)
class Sample:
    """A completion and its verdict.

    Attributes:
        run: identifies model, problems and settings; a file holds the samples of one run.
        number: counts the samples of a problem, from 0. Seed, task_id and number decide the random numbers.
        mean_log_prob: mean log-probability of its tokens, in nats.
        finished: whether the completion ended by itself, not by a limit on its length.
        looped: whether it was ended because it repeated itself.
        verdict, detail, seconds: see `Verdict`.
        engine: the engine that wrote it, and how it stores the weights.

    Samples of earlier versions have no engine and no number; they are numbered in the order of the file.
    """

    run: str
    task_id: str
    completion: str
    mean_log_prob: float
    tokens: int
    finished: bool
    looped: bool
    verdict: str
    detail: str
    seconds: float
    engine: str = ""
    number: int = -1

    @property
    def parses(self) -> bool:
        return self.verdict != "not parseable"

    @property
    def runs(self) -> bool:
        """Whether the test came to an answer, right or wrong."""
        return self.verdict in ("passed", "failed")

    @property
    def repeats(self) -> bool:
        """Whether a stretch of text, whitespace aside, occurs three times in a row, or would have."""
        return self.looped or repeats_itself(re.sub(r"\s+", " ", self.completion))


_FirstKeys = TypedDict("_FirstKeys", {field.name: field.type for field in fields(Sample) if field.default is MISSING})


class SampleLine(_FirstKeys, total=False):
    """A line of a file of samples."""

    engine: str
    number: int


def repeats_itself(text: str) -> bool:
    """Whether a stretch of at least SHORTEST_REPEATED characters occurs three times in a row.

    Text with that period holds two equal blocks that begin at multiples of the period, so only those are compared.
    """
    for period in range(SHORTEST_REPEATED, len(text) // 3 + 1):
        for start in range(0, len(text) - 2 * period + 1, period):
            middle, end = start + period, start + 2 * period
            if text[start] == text[middle] and text[start:middle] == text[middle:end]:
                while start and text[start - 1] == text[start - 1 + period]:
                    start -= 1
                while end < len(text) and text[end] == text[end - period]:
                    end += 1
                if end - start >= 3 * period:
                    return True
    return False


def read_samples(path: Path, run: str) -> list[Sample]:
    """Read the samples of an earlier process. An unfinished last line is cut off the file.

    Raises:
        InputError: a line is not a sample, or it is a sample of another run.
    """
    if not path.exists():
        return []
    content = read_input(path)
    whole = content[: content.rfind(b"\n") + 1]
    samples, there = [], set()
    for number, line in enumerate(whole.decode("utf-8", "replace").split("\n")[:-1], 1):
        remedy = "delete the line, or name another --samples"
        try:
            sample = Sample(**parse_json(line, SampleLine, f"{path}:{number}", remedy))
        except TypeError:
            raise InputError(f"{path}:{number}: not a sample; {remedy}") from None
        if sample.number < 0:
            sample = replace(sample, number=sum(sample.task_id == earlier.task_id for earlier in samples))
        if sample.run != run:
            raise InputError(
                f"{path}:{number}: a sample of another model, of other problems or of other settings; name another "
                "--samples, or delete the file"
            )
        if (key := (sample.task_id, sample.number)) in there:
            raise InputError(f"{path}:{number}: {sample.task_id} has a sample {sample.number} before; {remedy}")
        there.add(key)
        samples.append(sample)
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return samples


def take_samples(sandbox: Sandbox, tasks: list[Task], n: int, path: Path, run: str, generate: Generate) -> list[Sample]:
    """n samples of each task: those that the file holds already, and the others, which join it as they come.

    Raises:
        InputError: the file holds something else.
    """
    asked = {task.task_id for task in tasks}
    samples = [sample for sample in read_samples(path, run) if sample.task_id in asked]
    there = {(sample.task_id, sample.number) for sample in samples}
    missing = [(task, number) for task in tasks for number in range(n) if (task.task_id, number) not in there]

    def judge(place: int, completion: Generated, engine: str) -> Sample:
        task, number = missing[place]
        verdict = task.verdict(sandbox, completion.text)
        return Sample(
            run=run,
            task_id=task.task_id,
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

    def work() -> Iterator[Callable[[], Sample]]:
        for found in generate(*map(list, zip(*missing, strict=True))) if missing else ():
            yield partial(judge, *found)

    path.parent.mkdir(parents=True, exist_ok=True)
    bar = progress((), "complete and run", n * len(tasks), len(samples))
    passed = sum(sample.verdict == "passed" for sample in samples)
    with path.open("a", encoding="utf-8") as file, bar:
        for sample in in_parallel(work()):
            file.write(line_of(sample))
            file.flush()
            samples.append(sample)
            passed += sample.verdict == "passed"
            bar.update()
            bar.set_postfix_str(f"pass@1 {passed / len(samples):.1%}")
    return samples


def judge_again(sandbox: Sandbox, tasks: list[Task], path: Path, run: str) -> list[Sample]:
    """The samples of these tasks with the verdicts that they get now, which replace the old ones in the file.

    Raises:
        InputError: the file holds no samples of these tasks.
    """
    task_of = {task.task_id: task for task in tasks}
    samples = read_samples(path, run)
    if not (places := [place for place, sample in enumerate(samples) if sample.task_id in task_of]):
        raise InputError(f"{path}: holds no samples to judge again; take them first, without --judge_again")
    work = (partial(task_of[samples[at].task_id].verdict, sandbox, samples[at].completion) for at in places)
    for at, verdict in zip(places, progress(in_parallel(work), "run", len(places)), strict=True):
        samples[at] = replace(samples[at], verdict=verdict.kind, detail=verdict.detail, seconds=verdict.seconds)
    with atomic_write(path) as file:
        file.writelines(map(line_of, samples))
    return [samples[at] for at in places]


def line_of(sample: Sample) -> str:
    return json.dumps(asdict(sample)) + "\n"
