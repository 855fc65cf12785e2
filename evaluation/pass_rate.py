"""pass@1 of a model while it is trained: what train.py --problems measures at each evaluation."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from completion.complete import complete_all
from completion.engines.torch_engine import TorchEngine
from evaluation.measure import Sound, check_problems
from model import GPTSingleHead
from sandbox.problem_file import read_problems
from sandbox.running import Judge, in_parallel

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 256  # a function of TheAlgorithms or of HumanEval seldom takes more


class PassRate:
    """Completes the problems of a file greedily and RUNS the completions; says at once where.

    Args:
        path: in HumanEval's format.
        limit: the first so many problems; 0 for all.
    Raises:
        InputError: a fault of the file, no sandbox on this machine, or no problem that can be judged here.
    """

    def __init__(self, path: Path, limit: int = 0, allow_weak_sandbox: bool = False):
        problems, _ = read_problems(path)
        self._judge = Judge(allow_weak_sandbox)
        logger.info(
            "at each evaluation the model completes the problems of %s, and what it writes is run on this machine, "
            "in a sandbox of level %s",
            path,
            self._judge.level,
        )
        self._problems, refused = check_problems(self._judge, problems[: limit or None])
        logger.info("  %d problems, %d more refused", len(self._problems), len(refused))

    def __call__(self, model: GPTSingleHead, share: slice, interrupted: Callable[[], bool]) -> tuple[int, int]:
        """How many of a share of the problems the model solves, and how many it was asked.

        No random number of the training is drawn, and the model keeps its mode. Once interrupted, the numbers say
        nothing.
        """
        asked = self._problems[share]
        was_training = model.training
        model.eval()
        found = complete_all(
            TorchEngine(model, fixed=False),  # whose weights change: nothing may be recorded of a pass
            [sound.problem.prompt for sound in asked],
            cancelled=interrupted,
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=0.0,
        )
        work = (partial(self._passes, asked[place], one.text) for place, (one,) in found if not interrupted())
        solved = sum(in_parallel(work)) if asked else 0
        model.train(was_training)
        return solved, len(asked)

    def _passes(self, sound: Sound, completion: str) -> bool:
        return self._judge.judge(sound.problem, completion, sound.seconds).passed
