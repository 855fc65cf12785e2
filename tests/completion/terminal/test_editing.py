"""The editing screen with keys as a terminal sends them; what a terminal is sent; a history that cannot be kept."""

import asyncio
import errno
import io
import os
import pwd
import re
import select
import shutil
import signal
from contextlib import contextmanager

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from prompt_toolkit.output.vt100 import Vt100_Output

from completion.terminal.commands import HELP
from completion.terminal.editing import EditingScreen, open_history
from completion.terminal.plain_screen import PlainScreen, fold

TRICKY = "x\x1b[2J\x1b]0;title\x07\r\x08\x9b31m\u202e\u2066\x00\x7fé漢😀\ty\n"
SHOWN = "x\ufffd[2J\ufffd]0;title\ufffd\ufffd\ufffd\ufffd31m\ufffd\ufffd\ufffd\ufffdé漢😀\ty\n"


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "autocoder"


@contextmanager
def screen(output=None):
    with create_pipe_input() as keys, create_app_session(keys, output or DummyOutput()):
        yield EditingScreen(lambda: "", lambda: "python"), keys


def typed(*pieces):
    """What is read if the terminal sends these pieces, each after the one before was processed."""
    left = list(pieces)

    def send(_app):
        if left and not select.select([keys.fileno()], [], [], 0)[0]:
            keys.send_text(left.pop(0))

    with screen() as (edited, keys):
        edited._session.app.after_render += send
        return edited.read(">>> ")


FUNCTION = "def f(a):\n    if a:\n        b = 1\n\n    return b"


def test_pasted_code_keeps_its_own_indentation():
    assert typed(FUNCTION.replace("\n", "\r"), "\r", "\r") == FUNCTION
    assert typed(FUNCTION.replace("\n", "\r").replace("    ", "\t") + "\r", "\r") == FUNCTION.replace("    ", "\t")
    assert typed("x = 1\ry = (\r", "2)", "\r") == "x = 1\ny = (\n2)"  # a paste goes on after a whole statement
    assert typed("\x1b[200~" + FUNCTION + "\x1b[201~", "\r", "\r") == FUNCTION  # a terminal that marks pasted text


def test_typed_code_is_indented():
    assert typed("def f(a):", "\r", "if a:", "\r", "b", "\r", "\r") == "def f(a):\n    if a:\n        b"
    assert typed("x = (", "\r", "\t", "1,", "\t", "2)", "\r") == "x = (\n    1,  2)"
    # A new line before the last one is indented as the line that it follows.
    assert typed("if a:", "\r", "b", "\x1b[A", "\r", "c", "\x1b\r") == "if a:\n    c\n    b"


def test_ctrl_c_just_before_a_line_is_read_breaks_nothing(monkeypatch):
    make_pipe = asyncio.SelectorEventLoop._make_self_pipe

    def interrupted(loop):
        signal.raise_signal(signal.SIGINT)
        make_pipe(loop)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "_make_self_pipe", interrupted)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process does not have it
    try:
        assert typed("x = 1\r") == "x = 1"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a completion can be stopped
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(KeyboardInterrupt):
        typed("x = 1", "\x03")


def test_tab_on_an_empty_line_shows_the_next_candidate():
    assert typed("\t") == ":next"


@pytest.mark.parametrize("command", [":n 5", " :n 5", "  :help"])
def test_a_command_may_follow_a_blank(command):
    assert typed(command, "\r") == command
    assert typed(command[:-1], "\t", "\r").startswith(command[:-1].rstrip())


def test_control_characters_never_reach_the_terminal(monkeypatch, capsys):
    written = io.StringIO()
    output = Vt100_Output(written, lambda: Size(40, 80))
    with screen(output) as (edited, _):
        for language in ("python", "java"):
            code = edited.code("# " + TRICKY.rstrip(), language)
            code.write(TRICKY)
            code.end()
        edited.write("x: " + TRICKY)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-z]", "", written.getvalue()).replace("\r\n", "\n")
    assert "\x1b" not in shown
    assert shown.count(SHOWN.split("\t")[0]) == 5
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    code = PlainScreen().code(TRICKY, "python")
    code.write(TRICKY)
    PlainScreen().write("x: " + TRICKY)
    assert capsys.readouterr().out.expandtabs() == (SHOWN + "x: " + SHOWN).expandtabs()


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_help_fits_any_terminal(columns, monkeypatch):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: os.terminal_size((columns, 24)))
    rows = fold(HELP).split("\n")
    assert max(map(len, rows)) <= columns
    assert "".join("".join(rows).split()) == "".join(HELP.split())
    assert len(rows) < 2 * len(HELP) / columns  # no column of single letters


def earlier():
    return list(open_history().load_history_strings())


@pytest.mark.parametrize("trouble", ["a folder", "no permission", "full", "no UTF-8"])
def test_a_history_that_cannot_be_kept_costs_the_history_alone(state, trouble, monkeypatch):
    state.mkdir()
    file = state / "history"
    file.write_bytes(b"\n# 2020\n+caf\xe9\n" if trouble == "no UTF-8" else b"")
    if trouble == "a folder":
        file.unlink()
        file.mkdir()
    elif trouble != "no UTF-8":
        number = errno.EACCES if trouble == "no permission" else errno.ENOSPC
        plain_open = open

        def fails(name, mode="r", *arguments, **options):
            if str(name) == str(file) and "a" in mode:
                raise OSError(number, os.strerror(number), name)
            return plain_open(name, mode, *arguments, **options)

        monkeypatch.setattr("builtins.open", fails)
    assert typed("x = 1", "\r") == "x = 1"
    history = open_history()
    history.append_string("y = 2")
    assert history.get_strings()[-1] == "y = 2"
    assert ("y = 2" in earlier()) == (trouble == "no UTF-8")


def test_without_a_home_there_is_a_history_of_this_conversation_alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # as in `docker run --user 12345`
    assert isinstance(open_history(), InMemoryHistory)
    assert typed("x = 1", "\r") == "x = 1"
    assert not list(tmp_path.iterdir())
