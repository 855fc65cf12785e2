"""Make problems from the held-out sources of a dataset: the functions whose docstrings show examples.

python dataset/problems.py --dataset_name source_code                  write dataset/source_code/problems.jsonl
python evaluate.py --problems dataset/source_code/problems.jsonl       complete them and run the completions

This runs the sources' functions and examples, in the sandbox of sandbox/.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.command import Flags, InputError, flag, folder_name, output_file, parse_flags, run_command
from common.files import atomic_write, dataset_file
from common.model_files import load_tokenizer
from dataset.doctests import Cut, cut_problems
from dataset.format import read_meta
from dataset.problem_file import Problem
from dataset.sources import SourceFile, read_text
from dataset.splits import split_sources
from sandbox.sandbox import Sandbox, in_parallel

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

HASH_SEEDS = (0, 1)  # with both, since the order of strings in a set depends on the seed
NGRAM = 20  # tokens; convert.py measures contamination with the same n
SECONDS = 20  # of processor time for a problem's own solution
# Runs several programs. Ends with an AssertionError that gives the number of the first that runs to its end.
FIRST_PASSING = """
for number, program in enumerate({programs!r}):
    try:
        exec(program, {{}})
    except BaseException:
        continue
    raise AssertionError(number)
"""


@dataclass
class ProblemsConfig(Flags):
    dataset_name: str = flag("source_code", "folder below dataset/ that convert.py has written", type=folder_name)
    split: str = flag(
        "dev", "split whose sources to use; problems from train measure what was memorised", choices=("dev", "train")
    )
    output: str | None = flag(
        None,
        "file to write, with a .json of counts beside it; default: dataset/<dataset_name>/problems.jsonl",
        type=output_file(".jsonl"),
    )
    allow_weak_sandbox: bool = flag(False, "run the sources' code even where the sandbox can only limit it")


def main() -> None:
    config = parse_flags(ProblemsConfig, __doc__)
    dev_file = dataset_file(config.dataset_name, "dev")
    meta = read_meta(dev_file.parent)
    output = Path(config.output or dev_file.parents[1] / "problems.jsonl")
    try:
        output_file()(str(output))
    except ValueError as error:
        raise InputError(f"{output}: {error}; name another file with --output") from None
    tokenizer = load_tokenizer(meta["flags"]["tokenizer"])
    held_out, train = split_sources(meta, dev_file.parent, tokenizer)
    sandbox = Sandbox(config.allow_weak_sandbox)
    print(f"the sources' functions are run on this machine, in a sandbox of level {sandbox.level}")

    steps: Counter[str] = Counter()
    cuts = list(cut_files(held_out if config.split == "dev" else train, steps))
    problems = list(keep_sound(sandbox, cuts, steps))
    if not problems:
        raise InputError(f"{dev_file.parent}: no function of the {config.split} split makes a problem: {dict(steps)}")
    seen = known_ngrams(train)
    with atomic_write(output) as file:
        shares = []
        for problem in problems:
            shares.append(share_in_train(problem.canonical_solution, tokenizer, seen))
            file.write(json.dumps(asdict(problem) | {"solution_in_train": shares[-1]}) + "\n")
    counts = {
        "dataset": config.dataset_name,
        "split": config.split,
        "python": sys.version.split()[0],
        "sandbox": sandbox.level,
        "steps": dict(steps),
        "problems": len(problems),
        "solution_in_train": summary(shares),
    }
    with atomic_write(output.with_suffix(".json")) as file:
        json.dump(counts, file, indent=2)
        file.write("\n")
    for step, number in steps.items():
        print(f"{number:>6,} {step}")
    print(f"{len(problems):>6,} problems written: {output}")
    print(
        f"of a solution's {NGRAM}-grams occur in train: {counts['solution_in_train']['mean']:.1%} on average, "
        f"more than half in {counts['solution_in_train']['more_than_half']:,} problems"
    )


def cut_files(files: list[SourceFile], steps: Counter[str]) -> Iterator[tuple[str, Cut]]:
    """(task id, problem) of each function that can be a problem. Counts all of them in `steps`."""
    for file in files:
        try:
            cuts = list(cut_problems(read_text(file.file)[0]))
        except (SyntaxError, ValueError, RecursionError):
            steps[f"files that Python {sys.version_info.major}.{sys.version_info.minor} cannot read"] += 1
            continue
        for cut in cuts:
            steps["candidates: functions with examples in the docstring"] += 1
            if cut.foreign_modules:
                steps["left out: need more than the standard library and NumPy"] += 1
            else:
                yield f"{file.path}:{cut.name}", cut


def keep_sound(sandbox: Sandbox, cuts: list[tuple[str, Cut]], steps: Counter[str]) -> Iterator[Problem]:
    """The problems that their own solution solves and no trivial body does. Counts the others in `steps`."""
    from tqdm import tqdm

    checks: Iterator[Callable] = (partial(_check, sandbox, name, cut) for name, cut in cuts)
    for problem, fault in tqdm(in_parallel(checks), "check", len(cuts), unit="problem", leave=False, disable=None):
        if fault:
            steps[f"left out: {fault}"] += 1
        else:
            yield problem


def _check(sandbox: Sandbox, name: str, cut: Cut) -> tuple[Problem, str]:
    """The problem, and the reason if it must be left out."""
    problem = Problem(name, cut.prompt, cut.name, cut.solution, cut.test)
    for seed in HASH_SEEDS:
        if not sandbox.run(problem.program(cut.solution), SECONDS, seed).passed:
            return problem, "their own solution does not pass"
    verdict = sandbox.run(FIRST_PASSING.format(programs=[problem.program(body) for body in cut.trivial]), SECONDS)
    if verdict.passed:
        return problem, ""
    if verdict.kind != "failed":
        return problem, "a trivial body does not end"
    return problem, f"a trivial body passes, as does `{_kind(cut.trivial[int(verdict.detail.split()[-1])])}`"


def _kind(body: str) -> str:
    """The kind of a trivial body: pass, return a literal, return an argument."""
    statement = body.strip()
    if statement == "pass":
        return statement
    return "return an argument" if statement.removeprefix("return ").isidentifier() else "return a literal"


def known_ngrams(train: list[SourceFile]) -> "np.ndarray":
    """[n-grams of the sources] uint64: their hashes, sorted."""
    import numpy as np

    from dataset.contamination import ngram_hashes

    return np.sort(np.concatenate([ngram_hashes(file.ids, NGRAM) for file in train]))


def share_in_train(solution: str, tokenizer: "Tokenizer", seen: "np.ndarray") -> float | None:
    """Share of a solution's n-grams of tokens that also occur in train; None if the solution is shorter than n."""
    import numpy as np

    from dataset.contamination import ngram_hashes, occur_in

    ids = np.array(tokenizer.encode(solution, add_special_tokens=False).ids, dtype=np.int32)
    hashes = ngram_hashes(ids, NGRAM)
    return round(float(occur_in(hashes, seen).mean()), 4) if len(hashes) else None


def summary(shares: list[float | None]) -> dict[str, Any]:
    known = [share for share in shares if share is not None]
    return {
        "ngram": NGRAM,
        "mean": sum(known) / max(1, len(known)),
        "more_than_half": sum(share > 0.5 for share in known),
        "too_short_to_tell": len(shares) - len(known),
    }


if __name__ == "__main__":
    run_command(main)
