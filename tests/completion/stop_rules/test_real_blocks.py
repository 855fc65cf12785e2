"""The block rule on real Python: files are cut inside every kind of block, and the rule is fed what really comes next.

BLOCK_FILES=400 BLOCK_SOURCE=FOLDER pytest tests/completion/stop_rules/test_real_blocks.py tries more files, or others.
Comments after a block's last statement may count as its own: `ast` does not see them, a reader does.
"""

import ast
import os
import random
import warnings
from collections import Counter
from itertools import accumulate, pairwise
from pathlib import Path

from completion.stop_rules.python_lines import logical_lines
from completion.stop_rules.stop_rule import make_stop_rule

FOLDER = Path(os.environ.get("BLOCK_SOURCE") or Path(ast.__file__).parent)
FILES = int(os.environ.get("BLOCK_FILES", 14))
LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3"}
PER_KIND = 2  # cuts of one kind in one file
MARGIN = 2000  # characters after the true end, in which the rule could run on
DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def cuts(source):
    """Of a file: what kind of cut, the place to cut at, and the end of the block that a completion should reach."""
    rows = source.split("\n")
    starts = list(accumulate((len(row) + 1 for row in rows), initial=0))

    def place(row, column):  # ast counts bytes
        return starts[row - 1] + len(rows[row - 1].encode()[:column].decode())

    def start(node):
        first = node.decorator_list[0] if getattr(node, "decorator_list", []) else node
        return place(first.lineno, first.col_offset - (first is not node))

    def end(node):
        return place(node.end_lineno, node.end_col_offset)

    for node in ast.walk(ast.parse(source)):
        parts = [node, *getattr(node, "handlers", []), *getattr(node, "cases", [])]
        bodies = [
            (part, name, body)
            for part in parts
            for name in ("body", "orelse", "finalbody")
            if isinstance(body := getattr(part, name, []), list) and body and isinstance(node, ast.stmt)
        ]
        for part, name, body in bodies:
            head = source[: start(body[0])].rstrip()
            if head.endswith(":"):
                yield f"{type(part).__name__} {name}", len(head), end(node)
            if name == "body" and part is node and start(node) + 6 < len(head):
                yield "middle of a head", start(node) + 6, end(node)
            for before, statement in pairwise(body):
                if start(statement) == end(before) or ";" in source[end(before) : start(statement)]:
                    continue
                row = source.rfind("\n", 0, start(statement)) + 1
                if isinstance(statement, DEFINITION) and isinstance(node, ast.ClassDef):
                    yield "before a member", row, end(statement)
                    yield "before a member, indented", start(statement), end(statement)
                elif isinstance(node, ast.FunctionDef) and not isinstance(statement, DEFINITION):
                    yield "before a statement", start(statement), end(node)
                    if isinstance(statement, ast.Assign | ast.Return | ast.Expr | ast.AugAssign):
                        yield "middle of a statement", (start(statement) + end(statement)) // 2, end(node)


def kept_of(source, at, end):
    rule, text, shown = make_stop_rule("block", source[:at], "python"), source[at : end + MARGIN], 0
    for length in [*range(5, len(text), 5), len(text)]:
        safe, done = rule(text[:length])
        assert safe >= shown, "what was shown was taken back"
        shown = safe
        if done:
            break
    return text[:shown]


def sample():
    files = [file for file in sorted(FOLDER.rglob("*.py")) if not LEFT_OUT & set(file.relative_to(FOLDER).parts)]
    random.Random(0).shuffle(files)
    taken = 0
    for file in files:
        try:
            source = file.read_bytes().decode()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        if 2_000 < len(source) < 60_000 and "\f" not in source and "\r" not in source:
            taken += 1
            yield file, source
        if taken == FILES:
            return


def test_real_blocks_end_where_the_syntax_tree_says():
    tried, wrong = Counter(), []
    for file, source in sample():
        of_file = Counter()
        for kind, at, end in cuts(source):
            of_file[kind] += 1
            if of_file[kind] > PER_KIND:
                continue
            tried[kind] += 1
            kept, body = kept_of(source, at, end), source[at:end]
            further = kept[len(body) :].split("\n")
            if not kept.startswith(body) or any(row.strip(" ;") and row.strip()[:1] != "#" for row in further):
                wrong.append(f"{file}:{source.count(chr(10), 0, at) + 1} {kind}: ends with {kept[-40:]!r}")
    print(f"{tried.total()} cuts, {len(wrong)} wrong", *wrong, sep="\n")
    assert len(tried) >= 12
    assert len(wrong) <= tried.total() // 200, wrong


def test_logical_lines_cover_broken_source():
    """Whatever rows a source has lost, reading it neither fails nor goes backwards."""
    source = Path(ast.__file__).read_text(encoding="utf-8")[:3000]
    rng = random.Random(0)
    for _ in range(30):
        rows = [row[: rng.randrange(len(row) + 1)] if rng.random() < 0.2 else row for row in source.split("\n")]
        starts = [line.start for line in logical_lines("\n".join(rows))]
        assert starts == sorted(set(starts))
        assert starts
