"""Stop rules: where a block ends in Python and Java, whatever pieces its text comes in."""

import pytest

from completion.stop_rules.python_lines import after_cut_string
from completion.stop_rules.stop_rule import lacks_body, logical_lines, make_stop_rule, unfinished


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


@pytest.mark.parametrize(
    ("prompt", "text", "kept"),
    [
        ("def add(a, b):", "\n    return a + b\n\n\ndef g", "\n    return a + b"),
        ("def add(a, b):", " return a\nx", " return a"),
        ("def add(a, b", "):\n    return a\nx", "):\n    return a"),
        ("def f():\n    if x:", "\n        y\n    z", "\n        y"),
        ("def f():\n    if x:\n        y", " = 1\n    z()\nw", " = 1\n    z()"),
        ("def f():\n    x = 1\n    ", "y = 2\n\n    z = 3\nw", "y = 2\n\n    z = 3"),
        ("class A:\n    def f(self):", "\n        pass\n\n    def g", "\n        pass"),
        ("def f():", '\n    """a\nb\n"""\n    x\nc', '\n    """a\nb\n"""\n    x'),
        ("def f():", "\n    x = [\n1,\n]\n    y = 1 + \\\n2\nz", "\n    x = [\n1,\n]\n    y = 1 + \\\n2"),
        ("def f():", "\n    a\n# on\n    b\n# off\nc", "\n    a\n# on\n    b"),
        ("def f():", "\n    a\n    # of f\nb", "\n    a\n    # of f"),
        ("if __name__ == '__main__':\n    a", "()\n    b\nc", "()\n    b"),
        ("@cache", "\ndef f():\n    a\nb", "\ndef f():\n    a"),
        ("class A:\n    x = 1\n    @property\n", "    def f(self):\n        a\n    b", "    def f(self):\n        a"),
        ("import os\n", "import sys\nx = 1\n\ny", "import sys\nx = 1"),
        ("# sorts a list\n", "def f():\n    a\n\n    b\n\n\ndef g", "def f():\n    a\n\n    b"),
        ("x = (1,", "\n\n2)\ny\n\nz", "\n\n2)\ny"),
        ("def f():\n    a\n\n\n", "def g():\n    b\n\n\nc", "def g():\n    b"),
        ("def f():", "\n        a\n    b\nc", "\n        a"),
        ("def f():", "\n    a = 'x\n    b $ c\n    d)\n    e\nf", "\n    a = 'x\n    b $ c\n    d)\n    e"),
        ("if x:", "\n\ta\n        b\nc", "\n\ta\n        b"),
    ],
)  # fmt: skip
def test_block_ends_where_a_programmer_would(prompt, text, kept):
    assert cut("block", prompt, text) == (kept, True)


@pytest.mark.parametrize(
    ("prompt", "text", "kept"),
    [
        ("int f(int a) {", "\n  if (a) {\n    g('}');\n  }\n}\nint g", "\n  if (a) {\n    g('}');\n  }\n}"),
        ("class A {\n  int f(int a)", " {\n    return a;\n  }\n  int g", " {\n    return a;\n  }"),
        ("class A {\n  void f() {\n    int x = ", "1; // }\n    x++;\n  }\n}", "1; // }\n    x++;\n  }"),
        ("void f() {\n for (int i = 0;", " i < n; i++) {\n  g();\n }\n}", " i < n; i++) {\n  g();\n }"),
        ("void f() {", '\n  s = "}" + """\n}\n""";\n}\n}', '\n  s = "}" + """\n}\n""";\n}'),
        ("import java.util.List", ";\nclass A", ";"),
        ("/* } */ class A { /* {", " */ int x; }\n}", " */ int x; }"),
    ],
)  # fmt: skip
def test_java_block_ends_at_its_brace(prompt, text, kept):
    assert cut("block", prompt, text, "java") == (kept, True)


def test_other_stops():
    text = "\n  a\n  b\n\n  c"
    assert cut("line", "", text) == ("\n  a", True)
    assert cut("blank", "", text) == ("\n  a\n  b", True)
    assert cut("none", "", text) == (text, False)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("def f():", "python", True), ("def f():\n    a", "python", True), ("x = (1,", "python", True),
        ("x = 1", "python", False), ("for i in ra", "python", False), ("@cache", "python", True),
        ("int f() {", "java", True), ("int f() { }", "java", False), ("f(a,", "java", True), ("/* a", "java", True),
    ],
)  # fmt: skip
def test_unfinished_input_is_known(text, language, expected):
    assert unfinished(text, language) == expected


DOCSTRING_ENDS = ['It isn\'t (whole.\n    """\n', "    it's said.'''\n", 'a: (b\n\n    """  # c\n']


@pytest.mark.parametrize("end", DOCSTRING_ENDS)
def test_a_prompt_may_begin_inside_a_docstring(end):
    """As those of editors, which send only some lines before the cursor."""
    check(end + "    for x in y:\n", "        if x:\n            return x", "\n    return None\n", "python")
    assert lacks_body(end + "    if x:", "python")
    assert unfinished(end + "    f(", "python") and not unfinished(end + "x = 1", "python")


@pytest.mark.parametrize(
    "begin",
    ['"""Text."""\n', '"""\nText\n', 'def f():\n    r"""\n    text\n', 'x = """\na\n', 'f(1, """\n', '{"a": """\n',
     '# """\n', 'import a\n\n"""\nA text, as it is.\n', "return '''a\n"],
)  # fmt: skip
def test_strings_that_begin_in_the_prompt_are_whole(begin):
    assert after_cut_string(begin) == begin
