"""The conversation in a terminal: it reads code and completes it, and it obeys commands."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.command import InputError
from common.files import atomic_write
from common.source_code import LANGUAGES, language_of, read_source
from completion.complete import complete_at
from completion.cursor import Cursor
from completion.engines.engine import Engine
from completion.repository.choice import choose_context
from completion.repository.repository import Repository
from completion.settings import Completion, CompletionSettings
from completion.terminal.commands import CURSOR, HELP, SETTING_COMMANDS, describe, describe_context, notes
from completion.terminal.plain_screen import PlainScreen


@dataclass
class Conversation:
    """A conversation with a model."""

    engine: Engine
    name: str  # of the model, for the status line
    language: str  # one of LANGUAGES; empty: ask the user
    settings: dict  # fields of CompletionSettings
    repository: Repository | None = None  # the model sees code from its files that resembles the prompt
    context_tokens: int = 0  # the most tokens of such code

    def __post_init__(self) -> None:
        self._tokens_per_second = 0.0
        self._prompt, self._suffix, self._context = "", "", ()
        self._found, self._shown = [], 0  # the candidates, and which of them was shown last
        self._screen = make_screen(self.status, lambda: self.language)

    def run(self) -> None:
        try:
            if not self.language:
                self._choose_language()
            self._screen.write(f"{self.status()}\nType code to complete it; :help lists the commands, exit ends.\n")
            while (text := self._read(">>> ")).strip() not in ("exit", ":exit"):
                if text.strip():
                    self._obey(text)
        except EOFError:
            self._screen.write("\n")

    def status(self) -> str:
        values = self.settings
        line = f"{self.name} | {self.language} | n {values['num_return_sequences']}"
        line += f" | temperature {values['temperature']:g} | stop {values['stop']}"
        return line + (f" | {self._tokens_per_second:.0f} tokens/s" if self._tokens_per_second else "")

    def _read(self, message: str, question: bool = False) -> str:
        """Return what the user entered; nothing after Ctrl-C, and for bytes that are not UTF-8."""
        try:
            text = self._screen.ask(message) if question else self._screen.read(message)
            text.encode()
        except KeyboardInterrupt:
            self._screen.write("\n")
        except UnicodeError:
            self._screen.write("that is not UTF-8: set the terminal to UTF-8 and enter it again\n")
        else:
            return text
        return ""

    def _choose_language(self) -> None:
        language = None
        while language not in LANGUAGES:
            language = self._read(f"Language, {' or '.join(LANGUAGES)} [{LANGUAGES[0]}]: ", question=True)
            language = language.strip().lower() or LANGUAGES[0]
        self._set_language(language)

    def _set_language(self, language: str) -> None:
        self.language = language
        self._screen.write(f"language {language}\n")

    def _obey(self, text: str) -> None:
        try:
            if text.strip() == "change_lang":
                self._choose_language()
            elif text.lstrip().startswith(":"):
                name, _, value = text.strip()[1:].strip().partition(" ")
                self._command(name, value.strip())
            else:
                prompt, _, suffix = text.partition(CURSOR)
                self._complete(prompt, suffix)
        except InputError as error:
            self._screen.write(f"{error}\n")
        except OSError as error:
            self._screen.write(f"{error.filename}: {error.strerror}\n")
        except KeyboardInterrupt:  # the second Ctrl-C, before the first took effect at the next token
            self._screen.write("\n")

    def _command(self, name: str, value: str) -> None:
        if name in SETTING_COMMANDS:
            self._set(name, value)
        elif name == "lang":
            if value.lower() not in LANGUAGES:
                raise InputError(f":lang takes {' or '.join(LANGUAGES)}")
            self._set_language(value.lower())
        elif name == "continue":
            self._continue(value or str(self._shown + 1))
        elif name == "next":
            if len(self._found) < 2:
                raise InputError("no other candidate to show: set :n, then type some code")
            self._show((self._shown + 1) % len(self._found))
        elif name == "context":
            self._show_context()
        elif name == "load":
            file = _file(name, value)
            source, language = read_source(file), language_of(file)
            if language and language != self.language:
                self._set_language(language)
            self._complete(source)
        elif name == "save":
            self._save(_file(name, value))
        elif name in ("help", ""):
            self._screen.write(HELP)
        else:
            raise InputError(f":{name}: no such command; :help lists them")

    def _set(self, name: str, value: str) -> None:
        field = SETTING_COMMANDS[name]
        if value:
            is_none = value == "none" and field.default is None
            number = None if is_none else field.metadata["rule"].check(f":{name}", value, is_text=True)
            self.settings = self.settings | {field.name: number}
        value = self.settings[field.name]
        shown = "none" if value is None else f"{value:g}" if isinstance(value, float) else value
        self._screen.write(f"{name} {shown}\n")

    def _continue(self, number: str) -> None:
        if not self._found:
            raise InputError("nothing to continue yet: type some code first")
        if not number.isdecimal() or not 1 <= int(number) <= len(self._found):
            raise InputError(f":continue {number}: choose a candidate from 1 to {len(self._found)}")
        last = self._found[int(number) - 1]
        # At the end of a file, blank lines after a whole block tell the model that the next block begins.
        begins_next = last.stop_reason in ("block", "blank") and not self._suffix
        self._complete(self._prompt + last.text + "\n\n" * begins_next, self._suffix)

    def _save(self, file: Path) -> None:
        if not self._found:
            raise InputError("nothing to save yet: type some code first")
        with atomic_write(file) as output:
            output.write(f"{self._prompt}{self._found[self._shown].text}{self._suffix}\n")
        self._screen.write(f"written: {file}\n")

    def _complete(self, prompt: str, suffix: str = "") -> None:
        """Complete, show the result and keep it for :continue and :save. A single candidate is shown while it grows."""
        options = CompletionSettings(**self.settings)
        streams = options.candidates == 1 and not options.min_probability
        began = time.perf_counter()
        with interruptible() as cancelled:
            code = self._screen.code(prompt, self.language) if streams else None
            cursor = Cursor(prompt, suffix, self.language)
            if self.repository:
                most = {"max_tokens": self.context_tokens, "max_new_tokens": options.max_new_tokens}
                cursor = choose_context(self.repository, self.engine, cursor, **most)
            self._context = cursor.context
            shown = {"on_text": code and code.write, "cancelled": cancelled}
            found = complete_at(self.engine, cursor, **shown, **self.settings)
        seconds = time.perf_counter() - began
        if code:
            code.end()
            self._screen.write(f"[{describe(found[0])}]\n")
        if found:
            self._prompt, self._suffix, self._found, self._shown = prompt, suffix, found, 0
            self._tokens_per_second = sum(len(completion.tokens) for completion in found) / seconds
        if found and not streams:
            self._show(0)
        else:
            self._write_notes(found, options)

    def _show_context(self) -> None:
        self._screen.write(f"{describe_context(self._context)}\n")
        for chunk in self._context:
            code = self._screen.code("", self.language)
            code.write(chunk.text)
            code.end()

    def _show(self, number: int) -> None:
        """Show one of the candidates, counted from 0. :continue and :save use the one that was shown last."""
        self._shown, completion = number, self._found[number]
        self._screen.write(f"--- {number + 1} of {len(self._found)}: {describe(completion)}\n")
        code = self._screen.code(self._prompt, self.language)
        code.write(completion.text)
        code.end()
        self._write_notes([completion], CompletionSettings(**self.settings))

    def _write_notes(self, found: list[Completion], options: CompletionSettings) -> None:
        ignored = bool(self._suffix) and not self.engine.vocabulary.fim_words
        for note in notes(found, options, ignored):
            self._screen.write(f"[{note}]\n")


def _file(command: str, name: str) -> Path:
    if not name:
        raise InputError(f":{command} needs the name of a file")
    return Path(os.path.expanduser(name))  # noqa: PTH111 - Path.expanduser fails for an unknown ~user


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed. Only a second Ctrl-C raises KeyboardInterrupt."""
    pressed = False

    def press(signum, frame) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def make_screen(status: Callable[[], str], language: Callable[[], str]):
    """Return a screen with line editing, history and colours, or a plain one if the terminal does not support these."""
    if sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from completion.terminal.editing import EditingScreen

        return EditingScreen(status, language)
    return PlainScreen()
