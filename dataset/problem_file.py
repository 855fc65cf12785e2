"""Problems in the format of OpenAI's HumanEval or of MBPP+: one JSON object per line, plain or compressed by gzip."""

import hashlib
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypedDict

from common.command import InputError
from common.files import read_lines
from common.json_files import parse_json

# Code after this line that imports one of these modules gets a new copy.
FORGET = (
    "[__import__('sys').modules.pop(name) for name in list(__import__('sys').modules)"
    " if name.partition('.')[0] in ('doctest', 'unittest')]"
)


# What every test of MBPP+ calls (evalplus/evalplus, tools/mbpp/to_original_fmt.py).
CALL_IN_TEST = re.compile(r"^    assertion\((\w+)\(\*inp\),", re.MULTILINE)


@dataclass(frozen=True)
class Problem:
    """A function to write, and its test.

    Attributes:
        prompt: source code up to the function's body, with its docstring; in MBPP+ a docstring alone.
        canonical_solution: a correct body; in MBPP+ the whole function.
        test: source code that defines `check(candidate)`, which raises an exception if the function is wrong.
    """

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str

    def program(self, completion: str) -> str:
        """Prompt, completion and test as one program, as in human-eval; it runs to its end if the function passes.

        The test has its own copies of unittest and doctest, so changes that the completion makes to them do not count.
        """
        return f"{self.prompt}{completion}\n{FORGET}\n{self.test}\n{FORGET}\ncheck({self.entry_point})"


def read_problems(path: Path) -> tuple[list[Problem], str]:
    """The problems of a file, and the SHA-256 of its text.

    Raises:
        InputError: the file is missing, or is not in this format. The message names the line.
    """
    if not path.exists():
        raise InputError(
            f"{path}: no such file; take HumanEval.jsonl.gz from github.com/openai/human-eval, or make problems of a "
            "dataset with `python dataset/problems.py --dataset_name NAME`"
        )
    remedy = "fetch it again, or name a .jsonl or .jsonl.gz file in HumanEval's format"
    lines, content = read_lines(path, remedy)
    problems: dict[str, Problem] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            problem = _read_problem(line, f"{path}:{number}")
            if problem.task_id in problems:
                raise InputError(f"{path}:{number}: task_id {problem.task_id} occurs twice; give each problem its own")
            problems[problem.task_id] = problem
    if not problems:
        raise InputError(f"{path}: holds no problem; one JSON object per line is expected, in HumanEval's format")
    return list(problems.values()), hashlib.sha256(content).hexdigest()


class _MbppPlusRow(TypedDict):
    """A problem of MBPP+ in the format of the original MBPP. Its test is a program that calls the function by name."""

    task_id: int
    prompt: str
    code: str
    test_list: list[str]
    test: str


def _read_problem(line: str, place: str) -> Problem:
    remedy = "delete the line or fetch the file again"
    row = parse_json(line, dict, place, remedy)
    if "plus_input" in row:  # its key `test` holds HumanEval's own few tests, if anything
        name = "MbppPlus" if str(row.get("task_id")).startswith("Mbpp") else "HumanEvalPlus"
        raise InputError(
            f"{place}: this file of EvalPlus has inputs without results; take {name}-OriginFmt.jsonl.gz from the same "
            f"place, github.com/evalplus/{name.lower()}_release"
        )
    if "code" in row and "test_list" in row:
        row = _from_mbpp_plus(parse_json(line, _MbppPlusRow, place, remedy), place)
    keys = [field.name for field in fields(Problem)]
    if missing := [key for key in keys if not isinstance(row.get(key), str)]:
        raise InputError(f"{place}: a problem needs {', '.join(keys)} as text; missing here: {', '.join(missing)}")
    if not re.search(r"^def check\(", row["test"], re.MULTILINE):
        raise InputError(f"{place}: the test of {row['task_id']} has no `def check(candidate)`; add it")
    if not row["entry_point"].isidentifier():
        raise InputError(f"{place}: entry_point {row['entry_point']!r} of {row['task_id']} is not a function's name")
    return Problem(**{key: row[key] for key in keys})


def _from_mbpp_plus(row: _MbppPlusRow, place: str) -> dict[str, Any]:
    """The same problem as EvalPlus shows it to a base model: a docstring with the sentence and the first assertion.

    That form is from evalplus/evalplus, tools/mbpp/init_plus.py; the published file has it without links.
    """
    call = CALL_IN_TEST.search(row["test"])
    if not call or not row["test_list"]:
        raise InputError(f"{place}: not a problem of MBPP+; take MbppPlus-OriginFmt.jsonl.gz of its version 0.2.0")
    sentence = re.sub(r"https?://\S+", "", row["prompt"])
    return {
        "task_id": f"Mbpp/{row['task_id']}",
        "prompt": f'"""\n{sentence}\n{row["test_list"][0]}\n"""\n',
        "entry_point": call[1],
        "canonical_solution": row["code"],
        # Last, since the function of Mbpp/56 is called check, and the test must find that one.
        "test": f"{row['test']}\n\ndef check(candidate):\n    pass  # the test above has run\n",
    }
