"""A screen with line editing, history, completion of commands, a status line and coloured code."""

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prompt_toolkit import PromptSession, print_formatted_text, prompt
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, NestedCompleter, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText, PygmentsTokens
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import DynamicLexer, PygmentsLexer
from prompt_toolkit.styles import Style
from pygments.lexers import find_lexer_class_by_name
from pygments.token import Comment, String, Text

from common.source_code import LANGUAGES
from completion.stop_rules.stop_rule import STOPS, unfinished
from completion.terminal.commands import COMMANDS
from completion.terminal.plain_screen import fold, printable

LEXERS = {language: find_lexer_class_by_name(language) for language in LANGUAGES}
# Only colours of the terminal's own palette, which its user can read. pygments' dark blue is hard to read on black.
STYLE = Style.from_dict(
    {
        "note": "ansibrightblack",
        "bottom-toolbar": "noreverse ansibrightblack",
        "pygments.comment": "ansibrightblack",
        "pygments.keyword": "ansimagenta",
        "pygments.literal.string": "ansigreen",
        "pygments.literal.string.doc": "noitalic ansigreen",
        "pygments.literal.number": "ansicyan",
        "pygments.name.function": "ansibrightblue",
        "pygments.name.class": "ansibrightblue",
        "pygments.name.builtin": "ansicyan",
        "pygments.operator": "",
    }
)
INDENT = 4
CONTEXT_CHARACTERS = 2000  # last characters of the prompt that are read to colour the completion


class EditingScreen:
    """The same as `plain_screen.PlainScreen`, but with line editing and colours.

    Args:
        status: returns the text of the status line.
        language: returns the language of the code that is typed.
    """

    def __init__(self, status: Callable[[], str], language: Callable[[], str]):
        self._language = language
        self._session = PromptSession(
            history=open_history(),
            multiline=True,
            key_bindings=self._keys(),
            completer=CommandCompleter(),
            lexer=DynamicLexer(lambda: PygmentsLexer(LEXERS[language()])),
            bottom_toolbar=lambda: fold(status()),
            prompt_continuation="... ",
            style=STYLE,
            reserve_space_for_menu=4,
            enable_suspend=True,
        )

    def ask(self, message: str) -> str:
        with no_interrupts():
            return prompt(message, enable_suspend=True, handle_sigint=False)

    def read(self, message: str) -> str:
        with no_interrupts():
            return self._session.prompt(message, handle_sigint=False).rstrip()

    def write(self, text: str) -> None:
        print_formatted_text(FormattedText([("class:note", fold(printable(text)))]), style=STYLE, end="", flush=True)

    def code(self, prompt: str, language: str) -> "ColouredCode":
        return ColouredCode(prompt, language)

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if is_command(buffer.document):
                buffer.validate_and_handle()
            elif is_pasted(event):  # pasted code has its own indentation
                buffer.newline(copy_margin=False)
            elif self._is_whole(buffer.document):
                buffer.validate_and_handle()
            else:
                line = buffer.document.current_line_before_cursor
                buffer.newline()  # with the same indentation
                buffer.insert_text(" " * INDENT * line.rstrip().endswith((":", "{")))

        @keys.add("tab", filter=~Condition(lambda: is_command(get_app().current_buffer.document)))
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if is_pasted(event):
                buffer.insert_text("\t")
            elif not buffer.text:
                event.app.exit(result=":next")
            else:
                buffer.insert_text(" " * (INDENT - buffer.document.cursor_position_col % INDENT))

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.validate_and_handle()

        return keys

    def _is_whole(self, document: Document) -> bool:
        if document.is_cursor_at_the_end and not document.current_line.strip():
            return True
        return not unfinished(document.text, self._language())


@contextmanager
def no_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C's signal while a line is edited. There Ctrl-C is a key, and a signal could break the event loop."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def is_command(document: Document) -> bool:
    return document.text.lstrip().startswith(":")


def is_pasted(event: KeyPressEvent) -> bool:
    """Whether more input follows this key at once, as when text is pasted and the terminal does not mark it."""
    if event.key_processor.input_queue:
        return True
    with suppress(OSError, ValueError, NotImplementedError):  # on Windows, select accepts only sockets
        return bool(select.select([event.app.input.fileno()], [], [], 0)[0])
    return False


class LastingHistory(FileHistory):
    """A history in a file. If the file cannot be read or written, the history contains only this conversation."""

    def load_history_strings(self) -> Iterator[str]:
        with suppress(OSError):
            yield from super().load_history_strings()

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def open_history() -> History:
    """Return the history of all conversations, or only of this one if there is no folder for the file."""
    try:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "autocoder"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "history").touch(mode=0o600)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return InMemoryHistory()
    return LastingHistory(folder / "history")


class CommandCompleter(Completer):
    """Completes a command's name and its value."""

    paths = PathCompleter(expanduser=True)
    values = dict.fromkeys(COMMANDS) | {"lang": set(LANGUAGES), "stop": set(STOPS), "load": paths, "save": paths}
    commands = NestedCompleter.from_nested_dict(values)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        if is_command(document):
            typed = Document(document.text_before_cursor.lstrip()[1:])
            yield from self.commands.get_completions(typed, complete_event)


class ColouredCode:
    """Prints code in colours, piece by piece: the prompt's last line, then the completion.

    A word is printed only when it is whole, because its colour may change until then. Comments, strings and spaces are
    printed at once. What was printed never changes.
    """

    def __init__(self, prompt: str, language: str):
        self._lexer = LEXERS[language](stripnl=False, ensurenl=False)
        self._text = printable(prompt[-CONTEXT_CHARACTERS:])
        self._written = self._text.rfind("\n") + 1
        self._write(whole=False)

    def write(self, text: str) -> None:
        self._text += printable(text)
        self._write(whole=False)

    def end(self) -> None:
        self._write(whole=True)
        print_formatted_text(flush=True)

    def _write(self, whole: bool) -> None:
        tokens = list(self._lexer.get_tokens_unprocessed(self._text))
        fresh = []
        for start, kind, value in tokens:
            end = start + len(value)
            may_grow = end == len(self._text) and not any(kind in sort for sort in (Comment, String, Text))
            if end > self._written and (whole or not may_grow):
                fresh.append((kind, value[max(0, self._written - start) :]))
                self._written = end
        if fresh:
            print_formatted_text(PygmentsTokens(fresh), style=STYLE, end="", flush=True)
