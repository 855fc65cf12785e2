"""Where the block rule ends a completion, beside where the block ends in real code.

Files are cut inside every kind of block and the true rest is fed in token by token. The true ends come from Python's
`ast` and, for Java, from tree-sitter (`pip install tree-sitter tree-sitter-java`). Comments behind a block's last
statement may count as its own: syntax trees do not see them, a reader does.

    python -m benchmarks.block_ends --python_source dataset/Python --java_source ../Java/src/main/java
"""

import ast
import io
import random
import re
import tokenize
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from common.command import InputError, flag, parse_flags, run_command
from common.model_files import load_tokenizer
from completion.stop_rules.python_lines import HEADS
from completion.stop_rules.stop_rule import make_stop_rule

NOT_CODE = {"site-packages", "test", "tests", "idlelib", "lib2to3"}
MARGIN = 2000  # characters behind the true end that the rule could run on to
CONTAINERS = {
    "program", "block", "constructor_body", "class_body", "interface_body", "annotation_type_body", "enum_body",
    "enum_body_declarations", "switch_block_statement_group", "switch_rule",
}  # fmt: skip
BODIES = {
    "block", "constructor_body", "class_body", "interface_body", "annotation_type_body", "enum_body", "switch_block",
    "array_initializer",
}  # fmt: skip


@dataclass
class Flags:
    python_source: str = flag("stdlib", "folder of Python files; stdlib: the running Python's own library")
    java_source: str = flag("", "folder of Java files; none: Python alone is measured")
    tokenizer: str = flag("tiny", "what cuts the rest into tokens: a model folder, a known name or a Hub id")
    per_kind: int = flag(300, "cuts of each kind at most")
    seed: int = flag(0, "seed of the sample")
    failures: int = flag(0, "failures to print of each kind")


@dataclass
class Cut:
    kind: str
    file: Path
    source: str
    at: int
    end: int  # where the block that is open at `at` ends


def main(argv: list[str] | None = None) -> None:
    flags = parse_flags(Flags, __doc__, argv)
    tokenizer = load_tokenizer(flags.tokenizer)
    folder = Path(io.__file__).parent if flags.python_source == "stdlib" else Path(flags.python_source)
    _report(
        "python", (cut for file in _files(folder, ".py", flags.seed) for cut in python_cuts(file)), tokenizer, flags
    )
    if flags.java_source:
        try:
            import tree_sitter_java
            from tree_sitter import Language, Parser
        except ImportError:
            print("Java is left out: pip install tree-sitter tree-sitter-java")
            return
        parser = Parser(Language(tree_sitter_java.language()))
        files = _files(Path(flags.java_source), ".java", flags.seed)
        _report("java", (cut for file in files for cut in java_cuts(file, parser)), tokenizer, flags)


def _files(folder: Path, suffix: str, seed: int) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*" + suffix)) if not NOT_CODE & set(path.relative_to(folder).parts)]
    if not files:
        raise InputError(f"{folder}: no {suffix} file here")
    random.Random(seed).shuffle(files)
    return files


def python_cuts(file: Path) -> Iterator[Cut]:
    """Behind the colon of every clause, in the middle of its head, and before a statement of a function or class."""
    try:
        source = file.read_bytes().decode("utf-8").replace("\r\n", "\n")
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    if "\f" in source or "\r" in source:
        return
    offset = _offsets(source)
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt | ast.match_case)]
    for row, column, word, colon, inline in _clauses(source):
        owner = _owner(statements, row, column)
        if owner is None:
            continue
        at, end = offset(*colon, False), offset(owner.end_lineno, owner.end_col_offset)
        kind = word if isinstance(owner, ast.If) or word != "else" else f"{type(owner).__name__.lower()}-else"
        yield Cut(f"{kind}, one line" if inline else kind, file, source, at, end)
        if word not in ("else", "try", "finally") and not inline:
            middle = offset(row, column, False) + len(word) + 2
            if middle < at:
                yield Cut("middle of a head", file, source, middle, end)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            end = offset(node.end_lineno, node.end_col_offset)
            yield from _inside(node, file, source, offset, end)
        elif isinstance(node, ast.ClassDef):
            for member in node.body[1:]:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                    first = min([member.lineno, *(d.lineno for d in member.decorator_list)])
                    start, end = offset(first, 0), offset(member.end_lineno, member.end_col_offset)
                    yield Cut("member of a class", file, source, start, end)
                    yield Cut("member of a class, indented", file, source, start + member.col_offset, end)
                    if member.decorator_list:
                        at = offset(member.decorator_list[0].end_lineno, member.decorator_list[0].end_col_offset)
                        yield Cut("decorator", file, source, at, end)


def _inside(function: ast.AST, file: Path, source: str, offset, end: int) -> Iterator[Cut]:
    nested = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    waiting, first = list(function.body), {function.body[0]}
    while waiting:
        node = waiting.pop()
        if isinstance(node, nested):
            continue
        for _, below in ast.iter_fields(
            node
        ):  # what is first in a block is another kind: the block's head was the last
            if (
                isinstance(below, list)
                and below
                and isinstance(below[0], ast.stmt | ast.match_case | ast.excepthandler)
            ):
                waiting += below
                first.add(below[0])
        if (
            isinstance(node, ast.stmt)
            and node not in first
            and source[offset(node.lineno, 0) : offset(node.lineno, node.col_offset)].isspace()
        ):
            start = offset(node.lineno, node.col_offset)
            yield Cut("before a statement", file, source, start, end)
            if isinstance(node, ast.Assign | ast.Return | ast.Expr | ast.AugAssign):
                middle = (start + offset(node.end_lineno, node.end_col_offset)) // 2
                yield Cut("middle of a statement", file, source, middle, end)


def _offsets(source: str):
    rows = source.split("\n")
    starts = list(accumulate((len(row) + 1 for row in rows), initial=0))

    def offset(row: int, column: int, in_bytes: bool = True) -> int:
        return starts[row - 1] + (len(rows[row - 1].encode()[:column].decode()) if in_bytes else column)

    return offset


def _clauses(source: str) -> Iterator[tuple[int, int, str, tuple[int, int], bool]]:
    """Of every clause: row, column, word, the place behind its colon, and whether its body is on the same row."""
    first, depth, lambdas, colon, last = None, 0, 0, None, None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.COMMENT):
            continue
        if token.type == tokenize.NEWLINE:
            if first and colon and first.string in HEADS:
                yield *first.start, first.string, colon, colon != last
            first, colon = None, None
            continue
        if first is None:
            first, depth, lambdas = token, 0, 0
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
        lambdas += token.string == "lambda" and depth == 0
        if token.string == ":" and depth == 0 and colon is None:
            if lambdas:
                lambdas -= 1
            else:
                colon = token.end
        last = token.end


def _owner(statements: list[ast.AST], row: int, column: int) -> ast.AST | None:
    """The statement that a clause in this place belongs to."""
    best = None
    for node in statements:
        place = (node.pattern.lineno, None) if isinstance(node, ast.match_case) else (node.lineno, node.col_offset)
        if isinstance(node, ast.Match) and any(case.pattern.lineno == row for case in node.cases):
            return node
        compound = isinstance(getattr(node, "body", None), list)
        if (
            compound
            and place[1] == column
            and place[0] <= row <= node.end_lineno
            and (best is None or node.lineno >= best.lineno)
        ):
            best = node
    return best


def java_cuts(file: Path, parser) -> Iterator[Cut]:
    """Behind every opening brace, before and in the middle of members and statements."""
    try:
        source = file.read_text(encoding="ascii")  # so that bytes are characters
    except ValueError:
        return
    root = parser.parse(source.encode()).root_node
    if root.has_error:
        return
    waiting = [root]
    while waiting:
        node = waiting.pop()
        waiting += node.children
        if node.type in BODIES and source[node.start_byte] == "{":
            yield Cut(_java_kind(node), file, source, node.start_byte + 1, _statement_end(node, source))
        if node.type in ("class_body", "interface_body", "enum_body_declarations", "block"):
            yield from _java_inside(node, file, source)


def _java_inside(node, file: Path, source: str) -> Iterator[Cut]:
    children = [child for child in node.named_children if "comment" not in child.type]
    for child in children[1:]:
        middle = (child.start_byte + child.end_byte) // 2
        if node.type != "block":
            kind = "field" if "field" in child.type else "member"
            yield Cut(f"before a {kind}", file, source, child.start_byte, child.end_byte)
            name = child.child_by_field_name("name")
            middle = name.end_byte if name else middle
            yield Cut(f"middle of a {kind}", file, source, middle, child.end_byte)
        else:
            end = _statement_end(node, source)
            yield Cut("before a statement", file, source, child.start_byte, end)
            if child.type == "local_variable_declaration" and "{" not in child.text.decode():
                yield Cut("middle of a declaration", file, source, middle, end)


def _java_kind(node) -> str:
    parent = node.parent
    if parent.type == "if_statement":
        return "else" if parent.child_by_field_name("alternative") == node else "if"
    if node.type == "class_body" and parent.type == "object_creation_expression":
        return "anonymous class"
    if node.type == "switch_block":
        arrow = any(child.type == "switch_rule" for child in node.children)
        used = parent.parent.type not in CONTAINERS | {"expression_statement"}
        return "switch" + " expression" * used + " with arrows" * arrow
    if parent.type in BODIES:
        return f"{node.type} in {parent.type}"
    return parent.type.removesuffix("_statement").removesuffix("_declaration")


def _statement_end(node, source: str) -> int:
    while node.parent and node.parent.type not in CONTAINERS:
        node = node.parent
    return node.end_byte


def _report(language: str, cuts: Iterator[Cut], tokenizer, flags: Flags) -> None:
    """Try the first cuts of every kind, each file giving at most three of a kind, and print the shares."""
    tried, wrong, taken = defaultdict(int), defaultdict(list), defaultdict(int)
    for cut in cuts:
        taken[cut.kind, cut.file] += 1
        if tried[cut.kind] == flags.per_kind or taken[cut.kind, cut.file] > 3:
            continue
        tried[cut.kind] += 1
        kept = _kept(cut, language, tokenizer)
        body = cut.source[cut.at : cut.end]
        if not kept.startswith(body) or not _only_comments(kept[len(body) :], language):
            wrong[cut.kind].append((cut, kept))
    print(f"\n{language:<34}{'cuts':>7}{'exact':>9}")
    for kind in sorted(tried):
        print(f"{kind:<34}{tried[kind]:>7}{1 - len(wrong[kind]) / tried[kind]:>9.1%}")
        for cut, kept in wrong[kind][: flags.failures]:
            print(
                f"--- {cut.file}, cut at row {cut.source.count(chr(10), 0, cut.at) + 1}: {cut.source[: cut.at][-60:]!r}"
            )
            print(f"  true end {cut.source[cut.at : cut.end][-60:]!r}\n  ended at {kept[-60:]!r}")
    total = sum(tried.values())
    print(f"{'all':<34}{total:>7}{1 - sum(map(len, wrong.values())) / max(1, total):>9.1%}")


def _only_comments(text: str, language: str) -> bool:
    return not re.sub(
        r"//.*|/\*.*?\*/" if language == "java" else r"#.*", "", text, flags=re.DOTALL * (language == "java")
    ).strip("; \t\r\n\f")


def _kept(cut: Cut, language: str, tokenizer) -> str:
    rule = make_stop_rule("block", cut.source[: cut.at], language)
    text, shown = cut.source[cut.at : cut.end + MARGIN], 0
    for end in sorted({end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets} | {len(text)}):
        safe, done = rule(text[:end])
        if safe < shown:
            return "taken back: " + text[:shown]
        shown = safe
        if done:
            break
    return text[:shown]


if __name__ == "__main__":
    run_command(main)
