"""Problem files in the formats of HumanEval and MBPP+: what is read, and what is said of a faulty one."""

import gzip
import json

import pytest

from common.command import InputError
from dataset.problem_file import Problem, read_problems

TEST = "def check(candidate):\n    assert candidate(3) == {}\n"
PROBLEMS = [
    Problem(f"own/{i}", f"def add(n):\n    '''{i} more.'''\n", "add", f"    return n + {i}\n", TEST.format(3 + i))
    for i in range(3)
]
ROW = PROBLEMS[0].__dict__
# In the format of MbppPlus-OriginFmt.jsonl.gz.
MBPP_PLUS = {
    "task_id": 7,
    "code": "\ndef double(n):\n    return 2 * n\n",
    "prompt": "Double it. https://example.org/double",
    "source_file": "own",
    "test_imports": [],
    "test_list": ["assert double(1) == 2", "assert double(2) == 4"],
    "test": "def assertion(out, exp, atol):\n    assert out == exp\n\n\ninputs = [[1], [3]]\nresults = [2, 6]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(double(*inp), exp, 0)\n",
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(ROW)[:40], ":1: not JSON, perhaps torn"),
        (json.dumps(ROW) + "\n[]\n", ":2: the content is .., not an object"),
        (json.dumps({**ROW, "test": None}), ":1: .* missing here: test"),
        (json.dumps({**ROW, "test": "assert add(1) == 1\n"}), ":1: .* no `def check"),
        (json.dumps({**ROW, "entry_point": "add it"}), ":1: .* not a function's name"),
        (f"{json.dumps(ROW)}\n\n{json.dumps(ROW)}\n", ":3: task_id own/0 occurs twice"),
        (json.dumps({**MBPP_PLUS, "test": "assert double(1) == 2"}), ":1: not a problem of MBPP.*OriginFmt"),
        (json.dumps({**MBPP_PLUS, "test_list": []}), ":1: not a problem of MBPP.*OriginFmt"),
        (json.dumps({**MBPP_PLUS, "task_id": "7"}), ":1: .*task_id.*"),
        (json.dumps({**ROW, "plus_input": [[1]]}), ":1: .* take HumanEvalPlus-OriginFmt.jsonl.gz"),
        (json.dumps({"task_id": "Mbpp/7", "plus_input": [[1]]}), ":1: .* take MbppPlus-OriginFmt.jsonl.gz"),
        ("\n", ": holds no problem"),
        (b"\x1f\x8b\x08\x00\x00", ": not a whole gzip file"),
        (b"\xff\xfe\x00", ": not UTF-8"),
    ],
)
def test_faults_of_a_problem_file(tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f"^{path}{message}") as error:
        read_problems(path)
    assert "\n" not in str(error.value)


def test_problems_compressed_or_not(tmp_path):
    text = "".join(json.dumps(problem.__dict__ | {"more": 1}) + "\n" for problem in PROBLEMS).encode()
    (tmp_path / "p.jsonl").write_bytes(text)
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(text))
    assert read_problems(tmp_path / "p.jsonl") == read_problems(tmp_path / "p.jsonl.gz")
    assert read_problems(tmp_path / "p.jsonl")[0] == PROBLEMS
    with pytest.raises(InputError, match="no such file"):
        read_problems(tmp_path / "absent.jsonl")


def test_line_separators_inside_texts_and_a_byte_order_mark(tmp_path):
    rows = [problem.__dict__ | {"prompt": f"# \u2028 \x85 \x0c\n{problem.prompt}"} for problem in PROBLEMS]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [problem.prompt for problem in read_problems(tmp_path / "p.jsonl")[0]] == [row["prompt"] for row in rows]


@pytest.mark.parametrize("name", ["double", "check"])
def test_a_problem_of_mbpp_plus_is_a_docstring_whose_completion_is_run_against_the_whole_test(tmp_path, name):
    (tmp_path / "p.jsonl").write_text(json.dumps(MBPP_PLUS).replace("double", name))
    ((problem,), _) = read_problems(tmp_path / "p.jsonl")
    assert problem.task_id == "Mbpp/7"
    assert problem.prompt == f'"""\nDouble it. \nassert {name}(1) == 2\n"""\n'
    exec(problem.program(problem.canonical_solution), {})
    with pytest.raises(AssertionError):
        exec(problem.program(f"def {name}(n):\n    return 2\n"), {})
