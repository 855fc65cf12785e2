"""The tasks that a file of problems gives to a model, and the verdict on its completions."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

from common.command import InputError
from completion.stop_rules.stop_rule import StopRule, make_stop_rule, unfinished
from dataset.problem_file import Problem
from sandbox.sandbox import Sandbox, Verdict, in_parallel

TIMES_CANONICAL = 20  # time limit, as a multiple of the CPU time that the problem's own solution takes here
CANONICAL_SECONDS = 20  # CPU time limit for the problem's own solution
# Where EvalPlus ends the code of a base model for MBPP+ (evalplus/evalplus, evalplus/provider/utility.py).
MBPP_STOP_WORDS = ('\n"""', "\nassert", "\nif __name__", "\ndef main(", "\nprint(")


@dataclass(frozen=True)
class Task:
    """A problem, or one line of its solution, to be completed.

    Attributes:
        before, after: the parts of the solution that are given before and after the completion.
        seconds: CPU time that a completion may take; 0 until `verified` has set it.
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
        """Run a completion against the problem's test."""
        return sandbox.run(self.problem.program(self.before + completion + self.after), self.seconds)


def stop_rule_of(prompt: str) -> StopRule:
    """Where the completion of a problem ends: with the function that the prompt began, or at MBPP_STOP_WORDS."""
    return make_stop_rule("block", prompt, "python") if unfinished(prompt, "python") else before_any(MBPP_STOP_WORDS)


def before_any(words: Sequence[str]) -> StopRule:
    """A stop rule: ends before the first of the words."""

    def rule(text: str) -> tuple[int, bool]:
        places = [place for word in words if (place := text.find(word)) >= 0]
        return (min(places), True) if places else (len(text), False)

    return rule


def tasks_of(problems: Iterable[Problem], single_lines: bool, limit: int) -> list[Task]:
    """Return the first `limit` tasks of the problems (0: all), counted before anything is checked.

    Args:
        single_lines: every line of every solution is a task, except blank lines and comments; all other lines are
            given. This is single-line infilling as in Fried et al. 2023 (InCoder), section 4.1.
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
    """Return the tasks whose problem's own solution passes here, and the verdicts on the other problems' solutions.

    Raises:
        InputError: no problem's own solution passes.
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
