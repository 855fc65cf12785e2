"""Stop rules: where a block ends in Python and Java, whatever pieces its text comes in."""

import pytest

from benchmarks.block_ends import main as measure
from completion.stop_rules.stop_rule import lacks_body, logical_lines, make_stop_rule


def cut(stop, prompt, text, language="python", step=1):
    """What a rule keeps of a text that comes in pieces; also that it never takes back what it has let through."""
    rule = make_stop_rule(stop, prompt, language)
    safe, shown, done = 0, "", False
    for end in range(step, len(text) + step, step):
        safe, done = rule(text[:end])
        assert text[:safe].startswith(shown)
        shown = text[:safe]
        if done:
            break
    return shown, done


def check(prompt, kept, further, language):
    for step in (1, 2, 3, 7, 1000):
        assert cut("block", prompt, kept + further, language, step) == (kept, True), step


@pytest.mark.parametrize(
    ("prompt", "kept", "further"),
    [
        # A head is a line that ends in its colon.
        ("def f(x):\n    if not x: return None", "\n    y = 1\n    return y", "\nz"),
        ("def f(x):\n    if not x:", " return None", "\n    y = 1"),
        ("def f():\n    g = lambda:", " 1\n    z", "\nw"),
        ("def f():\n    x: int", " = 1\n    z", "\nw"),
        ("def f():\n    x = a[1:", "2]\n    z", "\nw"),
        ("def f(x: int = {1: 2}[1], y=lambda: 3) -> 'a':", "\n    return x", "\nx"),
        ("if x:  # why", "\n    y", "\nz"),
        ("class X:", " pass", "\ny"),
        ("class X", "(A): pass", "\ny"),
        # Clauses belong to their statement.
        ("try:", "\n    a\nexcept E:\n    b\nelse:\n    c\n# x\nfinally:\n    d", "\ny"),
        ("try:\n    a\nexcept E:", "\n    b\nexcept F: c\nfinally:\n    d", "\ntry:\n    y"),
        ("def f():\n    if a:", "\n        b\n    # c\n    elif c: d\n    else:\n        e", "\n    if f:\n"),
        ("for x in y:", "\n    break\nelse:\n    z", "\nelsewhere"),
        ("while x:", "\n    break\nelse:\n    z", "\nelse_ = 1"),
        ("for x in y:\n    if x:", "\n        break", "\nelse:\n    z"),
        ("match x:", "\n    case 1:\n        a\n    case {'a': 1}:\n        b", "\nc"),
        ("match x:\n    case 1:", "\n        a\n    case {'a': 1}:\n        b", "\nc"),
        ("with x as y:", "\n    a", "\nelse"),
        # A block gets its body.
        ("def f():", "\n    # only\n\n    return 1", "\n\nx"),
        ("def f():", "\n\n\ndef g():\n    a", "\n\nb"),
        ("def f():", "\n    '''doc'''", "\n\n\nx"),
        # Strings, brackets, line continuations.
        ("def f():", '\n    s = """\nx\n"""\n    t = \'\\\'"\' + r"\\"\n    return (\n1)', "\nx"),
        ("def f():", "\n    s = f\"{x[\"a\"]:>{w}} {{ {y!r}\" + f'''{\n1}'''", "\nx"),
        ("def f():\n    s = f'{a:", "%d}'\n    return s", "\nx"),
        ("def f():", "\n    a = 'b\\\nc'\n    return a", "\nx"),
        ("def f():\n    if a \\", "\n  and b:\n        c", "\n    d"),
        ("def f():\n    x = 1; ", "y = 2\n    z", "\nw"),
        ("def f():", "\n    a = f'{b\n    c", "\nd"),  # a string that somebody forgot to close
        # Definitions.
        ("async def f():", "\n    async for x in y:\n        a\n    else:\n        b", "\nc"),
        ("def f():\n    def g():\n        a\n    ", "b\n    def h():\n        c\n    d", "\ne"),
        ("class A:\n    def f(self):\n        a\n\n", "    @p\n    def g(self):\n        b", "\n\n    def h(self):\n"),
        ("class A:\n    def f(self):\n        a\n\n    ", "def g(self):\n        b", "\n\n    x = 1"),
        ("x = 1", "\n\ny = 2", "\n\nz = 3"),
        # A line that stands between the block's column and its statements': a model thinks itself in a class.
        ("def f(self):", "\n        if a:\n            b\n        c", "\n\n    def g(self):\n        d"),
        ("def f(self):\n        a\n", "        b", "\n    c"),
        ("def f():\n    a\n    if b:\n", "            c\n            d", "\n        e"),
        ("if a:\n        b\nelse:\n", "  c\n  d", "\n e"),
        # A line further in than the statement before it, which opened no block.
        ("x = [y for y in ", "z]", "\n    for a in b:\n        c"),
        ("assert f(3) ==", " 4", "\n    assert f(4) == 5"),
        ("def f():\n    a = (b,\n", "        c)\n    d", "\n        e"),
        ("def f():\n    ", "if a: b\n    c", "\n      d"),
    ],
)
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_python_statement_ends_with_its_last_clause(prompt, kept, further, line_break):
    check(*(text.replace("\n", line_break) for text in (prompt, kept, further)), "python")


@pytest.mark.parametrize(
    ("prompt", "kept", "further"),
    [
        # Clauses.
        ("void f() { try {", " a(); }\n // c\n catch (E e) { b(); } finally { c(); }", " d(); }"),
        ("void f() { do {", " a(); } while (x);", " b(); }"),
        ("void f() { if (a) {", " b(); } else if (c) d(); else { e(); }", " elsewhere(); }"),
        ("void f() { for (A a : b) {", " c(); }", " else"),
        ("void f() { outer: for (;;) {", " break outer; }", " b(); }"),
        # A brace inside an expression.
        ("void f() { int[] a = {", " 1, 2 };", "\n x(); }"),
        ("void f() { int[][] a = new int[][] {{1}, {", "2}};", "\n x(); }"),
        ("void f() { Runnable r = () -> {", ' a("\\n"); };', "\n b(); }"),
        ("void f() { x.map(y -> {", " if (a) { return y; } return z; }).toList();", "\n b(); }"),
        ("void f() { new A() {", " void g() {} }.g();", "\n b(); }"),
        ("int f(int x) { return switch (x) {", " case 1 -> { yield 2; } default -> 3; };", "\n }"),
        ("void f() { switch (x) { case A -> {", " a(); }", "\n case B -> b(); }"),
        ("void f() { switch (x) { case 1: if (a) {", " b(); } else { c(); }", "\n break; }"),
        # One member of an open class.
        ("class A {\n int a;\n", "  int[] b = {1, 2};", "\n int c; }"),
        (
            "class A {\n int a;\n",
            " @X({1, 2}) <T extends List<T>> void f(T[] t) throws E { if (a) { b(); } }",
            "\n int b; }",
        ),
        ("class A {\n int a;\n /** { */", " abstract int f();", " int b; }"),
        ("class A {\n int a;\n int f", "(int a) { return 1; }", " int b; }"),
        ("class A {\n int a;\n", "}", "\nclass B {}"),
        ("class A {", " int a; int b() { return 1; } }", "\nclass B {}"),
        ("class A { void record(int a) {\n b();\n", " c();\n }", " int d; }"),
        ("record A(int a) {\n int b() { return 1; }\n", " int c() { return 2; }", " int d() {} }"),
        # An argument list that was just opened: the statement is only begun, as in `f(a`.
        ("class A { void f() {\n final T x = new T(", "a);\n x.g();\n }", "\n void h() {} }"),
        ("class A { void f() {\n g(b -> {\n if (b.equals(", "c)) { d(); }", "\n }); } }"),
        ("class A {\n T x = new T(", "a);", "\n T y; }"),
        ("class A { int[] a() { return f(b[", "0]);\n }", "\n int c; }"),
        # Strings, characters, comments.
        (
            'void f() { char c = \'{\'; String s = """\n } \\""" {\n"""; if (a)',
            " { b('}', '\\''); } else c();",
            " d(); }",
        ),
        ("void f() {", '\r\n  a(); // }\r\n  /* } */ s = "\\"}";\r\n}', "\r\n}"),
    ],
)
def test_java_statement_ends_with_its_brace_or_semicolon(prompt, kept, further):
    check(prompt, kept, further, "java")


@pytest.mark.parametrize("stop", ["line", "blank"])
def test_no_rule_ends_before_the_first_statement_of_an_open_block(stop):
    assert cut(stop, "def f():", "\n    # c\n\n    a = 1\n\n    b") == ("\n    # c\n\n    a = 1", True)
    assert cut(stop, "void f() {", "\n // c\n\n a();\n\n b();", "java") == ("\n // c\n\n a();", True)
    assert cut(stop, "def f():\n", "    a\r\n\r\nb") == ("    a", True)


@pytest.mark.parametrize(
    ("source", "language", "expected"),
    [
        ("def f():", "python", True), ("def f():\n    # c\n\n", "python", True), ("def f():\n    '''", "python", False),
        ("if x: y", "python", False), ("x = lambda:", "python", False), ("match x:", "python", True),
        ("", "python", False),
        ("void f() {", "java", True), ("void f() { // c\n", "java", True), ("void f() { a", "java", False),
        ("int[] a = {", "java", False), ("", "java", False),
    ],
)  # fmt: skip
def test_a_block_without_a_statement_is_known(source, language, expected):
    assert lacks_body(source, language) == expected


def test_logical_lines_of_real_constructs():
    source = "@a\nif x:  # c\n  '''d\n'''\n  y = [\n1]; z\n# e\nlast = ("
    assert [(line.word, line.is_head, line.closed) for line in logical_lines(source)] == [
        ("@", False, True), ("if", True, True), ("'", False, True), ("y", False, True), ("#", False, True),
        ("last", False, False),
    ]  # fmt: skip


def test_real_blocks_end_where_the_syntax_tree_says(tmp_path, capsys):
    (tmp_path / "a.py").write_text(
        "class A:\n    def f(self):\n        a\n\n    def g(self):\n        try:\n            a\n        except E:\n"
        "            b\n        else:\n            c\n        for x in y:\n            z\n        else:\n"
        "            w\n        return 1\n"
    )
    measure(["--python_source", str(tmp_path)])
    rows = [row.split() for row in capsys.readouterr().out.splitlines()[2:]]
    assert {"class", "def", "try", "except", "try-else", "for", "for-else", "all"} <= {row[0] for row in rows}
    assert {row[-1] for row in rows} == {"100.0%"}
