"""Cut problems out of source files: functions whose docstring shows examples, with all that they need."""

import ast
import doctest
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

TEST = """import doctest

DOCSTRING = {docstring!r}


def check(candidate):
    names = {{**globals(), {name!r}: candidate}}
    examples = doctest.DocTestParser().get_doctest(DOCSTRING, names, {name!r}, None, 0)
    try:
        doctest.DebugRunner(verbose=False).run(examples)
    except doctest.UnexpectedException as error:
        raise error.exc_info[1] from None
    except doctest.DocTestFailure as failure:
        source, got = failure.example.source.strip(), failure.got.strip()
        raise AssertionError(f"{{source}} gave {{got}}") from None
"""


@dataclass(frozen=True)
class Cut:
    """A function as a problem, and what it needs.

    Attributes:
        modules: what the prompt and the solution import, by their top-level names.
        trivial: bodies that do not solve the task: `pass`, and `return` of a literal of the examples or an argument.
    """

    name: str
    prompt: str
    solution: str
    test: str
    modules: frozenset[str]
    trivial: list[str]

    @property
    def foreign_modules(self) -> set[str]:
        """What is neither in Python's own library nor NumPy."""
        return set(self.modules) - set(sys.stdlib_module_names) - {"numpy"}


def cut_problems(text: str) -> Iterator[Cut]:
    """Every top-level function of a module that has a docstring with examples and a body, in source order.

    Raises:
        SyntaxError, ValueError: the text is no Python module.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(text)
    rows = text.split("\n")
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}  # the last of each name
    for function in functions.values():
        docstring, first = ast.get_docstring(function, clean=False), function.body[0]
        if not docstring or len(function.body) < 2 or first.end_lineno >= function.body[1].lineno:
            continue
        try:
            examples = doctest.DocTestParser().get_examples(docstring)
        except ValueError:  # an unknown doctest directive
            continue
        if not examples:
            continue
        needed = _needed(tree, function, examples)
        parts = ["\n".join(rows[_first_row(node) - 1 : node.end_lineno]) for node in needed]
        head = "\n".join(rows[_first_row(function) - 1 : first.end_lineno])
        modules = {name for node in [*needed, function] for name in _imported(node)}
        modules |= {name for source in examples for name in _imported(_parsed(source.source))}
        yield Cut(
            name=function.name,
            prompt="".join(part + "\n" for part in parts) + "\n\n" * bool(parts) + head + "\n",
            solution="\n".join(rows[first.end_lineno : function.end_lineno]) + "\n",
            test=TEST.format(docstring=docstring, name=function.name),
            modules=frozenset(modules),
            trivial=_trivial_bodies(function, examples, re.match(r"\s*", rows[first.lineno - 1]).group()),
        )


def _needed(tree: ast.Module, function: ast.FunctionDef, examples: list[doctest.Example]) -> list[ast.stmt]:
    """The module's other statements that the function and its examples depend on, in source order."""
    others = [node for node in tree.body if node is not function and not _is_guard(node)]
    names = _used(function) | {name for example in examples for name in _used(_parsed(example.source))}
    names.discard(function.name)
    needed: set[int] = {i for i, node in enumerate(others) if _is_future(node)}
    grew = True
    while grew:
        grew = False
        for i, node in enumerate(others):
            if i not in needed and _provides(node) & names:
                needed.add(i)
                names |= _used(node) - {function.name}
                grew = True
    return [others[i] for i in sorted(needed)]


def _provides(node: ast.stmt) -> set[str]:
    """Names that a statement defines, or whose objects it changes, as in `TABLE["x"] = 1` and `random.seed(0)`."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.alias):
            found.add((part.asname or part.name).split(".")[0])
        elif isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(part.name)
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            found.add(part.id)
        elif isinstance(part, ast.Subscript | ast.Attribute) and isinstance(part.ctx, ast.Store):
            found.add(_root(part))
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        found.add(_root(node.value.func))
    return found


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _used(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _imported(node: ast.AST) -> set[str]:
    """Top-level names of the modules that a piece of code imports; "." for a relative import."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            found |= {alias.name.split(".")[0] for alias in part.names}
        elif isinstance(part, ast.ImportFrom):
            found.add("." if part.level else part.module.split(".")[0])
    return found


def _parsed(source: str) -> ast.AST:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


def _is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in _used(node.test)


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _first_row(node: ast.stmt) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def _trivial_bodies(function: ast.FunctionDef, examples: list[doctest.Example], indent: str) -> list[str]:
    shown = {}
    for example in examples:
        want = example.want.strip()
        for text in (want, repr(want)) if example.source.startswith("print(") else (want,):
            try:
                shown[repr(ast.literal_eval(text))] = None
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
    arguments = function.args
    names = [argument.arg for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
    names += [argument.arg for argument in (arguments.vararg, arguments.kwarg) if argument]
    return [f"{indent}pass\n", *(f"{indent}return {value}\n" for value in [*shown, *names])]
