"""What a model is asked to write of a file's problems, and whether what it wrote works."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

from common.command import InputError
from dataset.problem_file import Problem
from sandbox.sandbox import Sandbox, Verdict, in_parallel

TIMES_CANONICAL = 20  # the time limit, in times of the processor time that the problem's own solution takes here
CANONICAL_SECONDS = 20  # of processor time for that


@dataclass(frozen=True)
class Task:
    """A problem, or one line of its solution, to be completed.

    Attributes:
        before, after: what of the solution is given, on both sides of the completion.
        seconds: of processor time that a completion may take; 0 until `verified` has set it.
    """

    task_id: str
    problem: Problem
    before: str = ""
    after: str = ""
    seconds: int = 0

    @property
    def prefix(self) -> str:
        return self.problem.prompt + self.before

    def verdict(self, sandbox: Sandbox, completion: str) -> Verdict:
        """What becomes of a completion when it is run against the problem's test."""
        return sandbox.run(self.problem.program(self.before + completion + self.after), self.seconds)


def tasks_of(problems: Iterable[Problem], single_lines: bool, limit: int) -> list[Task]:
    """The tasks of the problems: the first `limit` of the file, counted before anything is checked; 0: all.

    Args:
        single_lines: each line of each solution is a task; blank ones and comments are none. This is single-line
            infilling of Fried et al. 2023 (InCoder), section 4.1: all other lines are given.
    """
    tasks = [Task(problem.task_id, problem) for problem in problems]
    if single_lines:
        tasks = [line for task in tasks for line in _lines(task)]
    return tasks[: limit or None]


def _lines(task: Task) -> Iterator[Task]:
    lines = task.problem.canonical_solution.split("\n")
    for number, line in enumerate(lines):
        if line.strip() and not line.lstrip().startswith("#"):
            before, after = "".join(f"{each}\n" for each in lines[:number]), "\n" + "\n".join(lines[number + 1 :])
            yield Task(f"{task.task_id}/line {number + 1}", task.problem, before, after)


def verified(sandbox: Sandbox, tasks: Sequence[Task]) -> tuple[list[Task], dict[str, Verdict]]:
    """The tasks whose problem's own solution passes here, and the verdict on the solutions of the other problems.

    Raises:
        InputError: there is none whose solution passes.
    """
    problems = list({task.problem.task_id: task.problem for task in tasks}.values())
    programs = [problem.program(problem.canonical_solution) for problem in problems]
    ran = in_parallel(partial(sandbox.run, program, CANONICAL_SECONDS) for program in programs)
    names = [problem.task_id for problem in problems]
    verdicts = dict(zip(names, progress(ran, "check the problems", len(problems)), strict=True))
    refused = {name: verdict for name, verdict in verdicts.items() if not verdict.passed}
    if len(refused) == len(problems):
        first = next(iter(refused.values()))
        raise InputError(f"no problem's own solution passes; the first: {first.kind}, {first.detail}")
    return [
        replace(task, seconds=ceil(TIMES_CANONICAL * verdicts[task.problem.task_id].seconds))
        for task in tasks
        if task.problem.task_id not in refused
    ], refused


def progress(iterable: Iterable, what: str, total: int, done: int = 0):
    from tqdm import tqdm

    return tqdm(iterable, what, total, initial=done, unit="problem", leave=False, disable=None)
