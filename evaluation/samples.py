"""Samples as they come: one JSON line for each completion that was judged, so that an interrupted run goes on."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from common.command import InputError
from common.files import atomic_write, read_input
from common.json_files import parse_json
from sandbox.running import Verdict

REPEATED = re.compile(r"(.{10,}?)\1\1")


@dataclass(frozen=True)
class Sample:
    """A completion and what became of it.

    Attributes:
        run: of which settings it is one; a file holds samples of one run.
        number: of its problem's samples, from 0; its random numbers follow from it, from the seed and the task_id.
        mean_log_prob: mean log-probability of its tokens, in nats.
        finished: whether the completion ended by itself, not by a limit on its length.
        looped: whether it was ended because it repeated itself.
        verdict, detail, seconds: see `Verdict`.
        engine: what wrote it, and how it stores the weights.

    Samples of earlier versions lack engine and number; they count from 0 in the order of the file.
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
        return Verdict(self.verdict).runs

    @property
    def repeats(self) -> bool:
        """Whether a stretch of text, spaces aside, stands there three times in a row, or would have."""
        return self.looped or REPEATED.search(re.sub(r"\s+", " ", self.completion)) is not None


def read_samples(path: Path, run: str) -> list[Sample]:
    """The samples of an earlier process; a last line that it could not finish is cut off the file.

    Raises:
        InputError: a line that is none, or samples of another run.
    """
    if not path.exists():
        return []
    content = read_input(path)
    whole = content[: content.rfind(b"\n") + 1]
    samples = []
    for number, line in enumerate(whole.decode("utf-8", "replace").splitlines(), 1):
        remedy = "delete the line, or name another --samples"
        try:
            samples.append(Sample(**parse_json(line, dict, f"{path}:{number}", remedy)))
        except TypeError:
            raise InputError(f"{path}:{number}: not a sample; {remedy}") from None
        if samples[-1].number < 0:
            earlier = sum(sample.task_id == samples[-1].task_id for sample in samples[:-1])
            samples[-1] = replace(samples[-1], number=earlier)
        if samples[-1].run != run:
            raise InputError(
                f"{path}:{number}: a sample of another model, of other problems or of other settings; name another "
                "--samples, or delete the file"
            )
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return samples


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    with atomic_write(path) as file:
        file.writelines(line_of(sample) for sample in samples)


def line_of(sample: Sample) -> str:
    return json.dumps(asdict(sample)) + "\n"


def shares(samples: list[Sample]) -> dict[str, float]:
    """Of the completions: the share that parses, runs, ends by itself, repeats itself."""
    return {name: sum(getattr(s, name) for s in samples) / len(samples) for name in SHARES}


SHARES = ("parses", "runs", "finished", "repeats")


def kinds(samples: list[Sample]) -> dict[str, int]:
    """How many samples got each verdict, the commonest first."""
    return dict(Counter(sample.verdict for sample in samples).most_common())
