"""The conversation: read code, complete it, obey commands."""

import os
import re
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from common import InputError, atomic_write
from completion import Completion, Settings, complete
from hub import LANGUAGES

# Commands that set a field of Settings.
OPTIONS = {
    "n": "num_return_sequences",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repetition_penalty": "repetition_penalty",
    "max_length": "max_new_tokens",
    "min_probability": "min_probability",
    "seed": "seed",
    "stop": "stop",
}
COMMANDS = (*OPTIONS, "lang", "next", "continue", "load", "save", "help", "exit")
HELP = """\
Type code and it is completed. Where lines can be edited, Enter goes to the
next line while a block or bracket is open; Enter on an empty line, or
Alt-Enter anywhere, completes. Ctrl-C stops a completion and keeps the text.
  :n 5               generate 5 candidates: first those that parse, the likeliest first
  :next              show the next of them; where lines can be edited, Tab does
  :temperature 0.2   lower is safer; 0 always takes the likeliest token
  :stop line         end with the line; or with the block, at a blank line, none
  :max_length 128    most tokens to generate
  :top_k :top_p :repetition_penalty :min_probability :seed
                     as those flags; a setting without a value is shown
  :lang java         change the language (as change_lang does)
  :continue          go on where the completion shown last ended, or with
                     :continue 2 where its second candidate did
  :load FILE         complete at the end of a file, in the language of its name
  :save FILE         write the prompt and the completion shown last to a file
  :help              show this text
  exit               end, as Ctrl-D does
"""


class Repl:
    """A conversation with a model.

    Args:
        model: a GPTSingleHead.
        name: what the status line calls it.
        language: one of LANGUAGES, or empty to ask.
        settings: the fields of Settings.
    """

    def __init__(self, model, name: str, language: str, settings: dict):
        self.model, self.name, self.language, self.settings = model, name, language, settings
        self.tokens_per_second = 0.0
        self._prompt, self._found, self._shown = "", [], 0
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
        setting = self.settings
        parts = [
            self.name,
            self.language,
            f"n {setting['num_return_sequences']}",
            f"temperature {setting['temperature']:g}",
            f"stop {setting['stop']}",
        ]
        if self.tokens_per_second:
            parts.append(f"{self.tokens_per_second:.0f} tokens/s")
        return " | ".join(parts)

    def _read(self, message: str, question: bool = False) -> str:
        """What the user entered; empty after Ctrl-C, or for bytes that are no text."""
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
            elif text.startswith(":"):
                name, _, value = text[1:].strip().partition(" ")
                self._command(name, value.strip())
            else:
                self._complete(text)
        except InputError as error:
            self._screen.write(f"{error}\n")
        except OSError as error:
            self._screen.write(f"{error.filename}: {error.strerror}\n")
        except KeyboardInterrupt:  # a second one, while the first was waiting for a token
            self._screen.write("\n")

    def _command(self, name: str, value: str) -> None:
        if name in OPTIONS:
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
        field = next(field for field in fields(Settings) if field.name == OPTIONS[name])
        if value:
            try:
                number = None if value == "none" and field.default is None else field.metadata["options"]["type"](value)
            except ValueError:
                raise InputError(f":{name} {value}: not a number") from None
            try:
                Settings(**(self.settings | {field.name: number}))
            except InputError as error:
                raise InputError(f":{name}{str(error).removeprefix(field.name)}") from None
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
        # After a whole block the next one begins; a blank line says so.
        self._complete(self._prompt + last.text + ("\n\n" if last.stop_reason in ("block", "blank") else ""))

    def _save(self, file: Path) -> None:
        if not self._found:
            raise InputError("nothing to save yet: type some code first")
        with atomic_write(file) as output:
            output.write(f"{self._prompt}{self._found[self._shown].text}\n")
        self._screen.write(f"written: {file}\n")

    def _complete(self, prompt: str) -> None:
        """Complete, show, and remember for :continue and :save. A single candidate is shown as it comes."""
        options = Settings(**self.settings)
        streams = options.candidates == 1 and not options.min_probability
        began = time.perf_counter()
        with interruptible() as cancelled:
            code = self._screen.code(prompt, self.language) if streams else None
            found = complete(
                self.model, prompt, self.language, on_text=code and code.write, cancelled=cancelled, **self.settings
            )
        seconds = time.perf_counter() - began
        if code:
            code.end()
            self._screen.write(f"[{describe(found[0])}]\n")
        if found:
            self._prompt, self._found, self._shown = prompt, found, 0
            self.tokens_per_second = sum(len(completion.tokens) for completion in found) / seconds
        if found and not streams:
            self._show(0)
        else:
            self._write_notes(found, options)

    def _show(self, number: int) -> None:
        """Show one of the candidates, counted from 0, which :continue and :save then mean."""
        self._shown, completion = number, self._found[number]
        self._screen.write(f"--- {number + 1} of {len(self._found)}: {describe(completion)}\n")
        code = self._screen.code(self._prompt, self.language)
        code.write(completion.text)
        code.end()
        self._write_notes([completion], Settings(**self.settings))

    def _write_notes(self, found: list[Completion], options: Settings) -> None:
        for note in notes(found, options):
            self._screen.write(f"[{note}]\n")


def _file(command: str, name: str) -> Path:
    if not name:
        raise InputError(f":{command} needs the name of a file")
    return Path(name).expanduser()


def describe(completion: Completion) -> str:
    """One line: how likely, how long, why it ended, whether it parses."""
    parts = [
        f"probability {completion.probability:.2g}",
        f"log-probability {completion.mean_log_prob:.2f} a token",
        f"{len(completion.tokens)} tokens",
        f"ended: {completion.stop_reason}",
    ]
    if completion.parses is not None:
        parts.append("parses" if completion.parses else "does not parse")
    return ", ".join(parts)


def notes(found: list[Completion], options: Settings) -> list[str]:
    """What a user should know about these completions that their text does not show."""
    if not found:
        return [f"no candidate reached a probability of {options.min_probability:g}"]
    said, dropped = [], found[0].prompt_tokens_dropped
    if dropped:
        said.append(f"the prompt is longer than the model's context: its first {dropped} tokens were left out")
    why = {
        "length": f"stopped after {options.max_new_tokens} tokens (--max_length)",
        "context": "stopped where the model's context ends",
        "interrupted": "stopped by Ctrl-C",
    }
    for reason in dict.fromkeys(completion.stop_reason for completion in found if not completion.finished):
        said.append(f"{why[reason]}: the last line may be unfinished")
    return said


def language_of(file: Path) -> str:
    """The language of a source file by its name; empty if it does not say."""
    return {".py": "python", ".java": "java"}.get(file.suffix.lower(), "")


def read_source(file: Path) -> str:
    """The text of a source file.

    Raises:
        InputError: it is not UTF-8.
        OSError: it cannot be read.
    """
    return decode_source(file.read_bytes(), str(file))


def decode_source(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}:{line}: not UTF-8; convert it, for instance with iconv -t UTF-8") from None


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether Ctrl-C was pressed since; only a second Ctrl-C interrupts."""
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
    """A screen with editing, history and colours where the terminal can do that, else a plain one."""
    if sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from screen import EditingScreen

        return EditingScreen(status, language)
    return PlainScreen()


def fold(text: str) -> str:
    """Break lines that are wider than the terminal: between words, not between a name, its colon and its value."""
    columns = shutil.get_terminal_size().columns
    folded = []
    for line in text.split("\n"):
        margin = line[: len(line) - len(line.lstrip())]
        rows = textwrap.wrap(line.replace(": ", ":\xa0"), columns, subsequent_indent=margin, break_on_hyphens=False)
        folded += [row.replace("\xa0", " ") for row in rows] or [""]
    return "\n".join(folded)


class PlainScreen:
    """Lines in, text out; nothing that a printer could not do."""

    def ask(self, message: str) -> str:
        return self.read(message)

    def read(self, message: str) -> str:
        return input(message)

    def write(self, text: str) -> None:
        print(fold(text) if sys.stdout.isatty() else text, end="", flush=True)

    def code(self, prompt: str, language: str) -> "PlainCode":
        return PlainCode(prompt)


class PlainCode:
    """Code on its way to a plain screen: the prompt's last line, and what follows it piece by piece."""

    def __init__(self, prompt: str):
        self.write(prompt[prompt.rfind("\n") + 1 :])

    def write(self, text: str) -> None:
        print(re.sub(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]", "\ufffd", text), end="", flush=True)

    def end(self) -> None:
        print(flush=True)
