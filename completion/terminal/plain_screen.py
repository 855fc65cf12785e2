"""A screen that reads lines and prints text, for pipes and terminals without cursor movement."""

import re
import shutil
import sys
import textwrap

# Characters that move the cursor, ring the bell or change the direction of text, and halves of characters (surrogates).
CONTROL = re.compile(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]|[\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Replace every control character, since a model may write any of them. The length stays the same."""
    return CONTROL.sub("\ufffd", text)


def fold(text: str) -> str:
    """Break lines that are wider than the terminal, but only between words, and not between `name:` and its value."""
    columns = shutil.get_terminal_size().columns
    rows = []
    for line in text.split("\n"):
        margin = line[: len(line) - len(line.lstrip())]
        if len(line) > columns:
            margin = margin[: columns // 8]
        words = line.lstrip().replace(": ", ":\xa0")
        indents = {"initial_indent": margin, "subsequent_indent": margin}
        rows += textwrap.wrap(words, columns, **indents, break_on_hyphens=False) or [""]
    return "\n".join(rows).replace("\xa0", " ")


class PlainScreen:
    """Reads and prints lines."""

    def ask(self, message: str) -> str:
        return self.read(message)

    def read(self, message: str) -> str:
        return input(message)

    def write(self, text: str) -> None:
        print(fold(printable(text)) if sys.stdout.isatty() else text, end="", flush=True)

    def code(self, prompt: str, language: str) -> "PlainCode":
        return PlainCode(prompt)


class PlainCode:
    """Prints code piece by piece: the prompt's last line, then the completion."""

    def __init__(self, prompt: str):
        self.write(prompt[prompt.rfind("\n") + 1 :])

    def write(self, text: str) -> None:
        print(printable(text), end="", flush=True)

    def end(self) -> None:
        print(flush=True)
