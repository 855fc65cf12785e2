"""Problems completed by a model, and the completions run: what evaluate.py --problems does, and train.py at its end."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.command import InputError
from common.files import ROOT
from common.model_files import find_pretrained
from completion.complete import complete_all, seed_of
from completion.engines.engine import Engine
from completion.settings import Completion
from completion.stop_rules.stop_rule import StopRule, make_stop_rule
from evaluation.measure import Generate, check_k, check_problems, judge_again, single_lines, summarise, take_samples
from sandbox.problem_file import read_problems
from sandbox.running import Judge, Verdict

# The benchmark's own, of Chen et al. 2021, section 3.1.
STOP_WORDS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
PACKAGES = ("torch", "transformers", "numpy", "xllamacpp")


@dataclass(frozen=True)
class Solving:
    """How problems are completed.

    Attributes:
        n_samples: completions of each problem: one, greedily, or several at `temperature`.
        stop: block: as interact.py stops; words: at STOP_WORDS.
        infill: empty; or line: each line of a solution is taken out in turn, and filled in between the others.
        no_infill: do so without regard to the lines after it.
        precision: of the model that `load` gives; recorded, since it may change what is written.
    """

    n_samples: int = 1
    temperature: float = 0.2
    max_new_tokens: int = 512
    stop: str = "block"
    seed: int = 0
    precision: str = "auto"
    infill: str = ""
    no_infill: bool = False

    def settings(self) -> dict[str, Any]:
        settings = asdict(self) | {"temperature": self.temperature if self.n_samples > 1 else 0.0}
        if not self.infill:
            del settings["infill"], settings["no_infill"]
        return settings


def solve(
    path: Path,
    load: Callable[[], Engine],
    fingerprint: str,
    solving: Solving,
    ks: list[int],
    samples: Path | None = None,
    limit: int = 0,
    again: bool = False,
    allow_weak_sandbox: bool = False,
) -> tuple[dict[str, Any], dict[str, Verdict]]:
    """Complete the problems of a file, run the completions, and sum up: the result, and the problems refused.

    Args:
        load: gives the engine to complete with; called only if there is something to complete.
        samples: the jsonl file of what was sampled already, which is added to; else one below .cache.
        limit: the first so many problems, or lines of them; 0 for all.
        again: run what the file holds once more, without the model.
    Raises:
        InputError: a fault of the problems, of the samples or of a k, or no sandbox on this machine.
    """
    for k in ks:
        check_k(k, solving.n_samples)
    problems, problems_hash = read_problems(path)
    judge = Judge(allow_weak_sandbox)
    print(f"completions are run on this machine, in a sandbox of level {judge.level}", flush=True)
    settings = solving.settings()
    made_of = {"model": fingerprint, "problems": problems_hash, **settings}
    if solving.n_samples > 1:
        del made_of["n_samples"]  # more of the same may join them
    run = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    samples = samples or ROOT / ".cache" / "samples" / f"{run}.jsonl"
    sound, refused = check_problems(judge, problems)
    if solving.infill:
        sound = [line for whole in sound for line in single_lines(whole)]
    sound = sound[: limit or None]
    if again:
        taken = judge_again(judge, sound, samples, run)
    else:
        taken = take_samples(judge, sound, solving.n_samples, samples, run, _lazy(load, solving))
    result = summarise(taken, ks)
    result |= {
        "model_fingerprint": fingerprint,
        "problems_file": str(path),
        "problems_sha256": problems_hash,
        "refused": {name: f"{verdict.kind}: {verdict.detail}" for name, verdict in refused.items()},
        "settings": settings,
        "samples": str(samples),
        "sandbox": judge.level,
        "versions": {"python": platform.python_version(), **_versions()},
    }
    return result, refused


def _lazy(load: Callable[[], Engine], solving: Solving) -> Generate:
    """Completes prompts, many at once: one candidate each, since the first of several would be the greedy one."""

    def generate(places: list[tuple[str, str]], names: list[str]) -> Iterator[tuple[int, Completion, str]]:
        engine = load()
        prompts, suffixes = zip(*places, strict=True)
        found = complete_all(
            engine,
            prompts,
            suffixes=suffixes if solving.infill and not solving.no_infill else (),
            rule_of=_rule_of(solving),
            max_new_tokens=solving.max_new_tokens,
            seeds=[seed_of(solving.seed, name) for name in names],
            temperature=solving.settings()["temperature"],
        )
        for place, (completion,) in found:
            yield place, completion, engine.name

    return generate


def _rule_of(solving: Solving) -> Callable[[str], StopRule] | None:
    if solving.infill:
        return lambda prompt: make_stop_rule("line", "", "python")  # one line, even where that opens a block
    return None if solving.stop == "block" else lambda prompt: at_stop_word


def at_stop_word(text: str) -> tuple[int, bool]:
    """A stop rule: ends before the first of STOP_WORDS."""
    places = [place for word in STOP_WORDS if (place := text.find(word)) >= 0]
    return (min(places), True) if places else (len(text), False)


def model_fingerprint(path: str) -> str:
    """Sixteen hex digits of a model's files: weights, configuration and vocabulary.

    Raises:
        InputError: as `find_pretrained`.
    """
    folder = find_pretrained(path)
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
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


def parse_ks(text: str) -> list[int]:
    """The k of pass@k, as in `1,10`."""
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise InputError(f"--k {text}: must be whole numbers with commas between, as in 1,10") from None
