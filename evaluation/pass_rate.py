"""pass@1 of a model while it is trained: what train.py --problems measures at each evaluation."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from completion.complete import complete_all
from completion.cursor import Cursor
from completion.engines.torch_engine import TorchEngine
from dataset.problem_file import read_problems
from evaluation.problems import stop_rule_of, tasks_of, verified
from model import GPTSingleHead
from sandbox.sandbox import Sandbox, in_parallel

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 256  # functions of TheAlgorithms and HumanEval rarely need more


class PassRate:
    """Completes the problems of a file greedily and RUNS the completions. Prints at the start where they run.

    Args:
        path: in HumanEval's format.
        max_problems: the first so many problems of the file; 0: all.
    Raises:
        InputError: a fault of the file, no sandbox on this machine, or no problem that can be judged here.
    """

    def __init__(self, path: Path, max_problems: int = 0, allow_weak_sandbox: bool = False):
        problems, _ = read_problems(path)
        self._sandbox = Sandbox(allow_weak_sandbox)
        logger.info(
            "at each evaluation the model completes the problems of %s, and what it writes is run on this machine, "
            "in a sandbox of level %s",
            path,
            self._sandbox.level,
        )
        self._tasks, refused = verified(self._sandbox, tasks_of(problems, False, max_problems))
        logger.info("  %d problems, %d more refused", len(self._tasks), len(refused))

    def __call__(self, model: GPTSingleHead, share: slice, interrupted: Callable[[], bool]) -> tuple[int, int]:
        """Return how many of a slice of the problems the model solves, and how many there are.

        No random number of the training is drawn, and the model keeps its mode. Once interrupted, the numbers say
        nothing.
        """
        asked = self._tasks[share]
        was_training = model.training
        model.eval()
        found = complete_all(
            TorchEngine(model),
            [Cursor(task.prefix) for task in asked],
            cancelled=interrupted,
            rule_of=stop_rule_of,
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=0.0,
        )
        work = (partial(asked[place].verdict, self._sandbox, one.text) for place, (one,) in found if not interrupted())
        solved = sum(verdict.passed for verdict in in_parallel(work)) if asked else 0
        model.train(was_training)
        return solved, len(asked)
