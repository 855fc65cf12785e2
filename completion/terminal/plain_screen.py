"""A terminal that only takes lines and prints text."""

import re
import shutil
import sys
import textwrap

# Everything that would move the cursor, ring, or turn the direction of writing; 1 for 1, so that no place moves.
CONTROL = re.compile(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]|[\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` as a terminal may get it, whoever wrote it."""
    return CONTROL.sub("\ufffd", text)


def fold(text: str) -> str:
    """Break lines that are wider than the terminal: between words, not between a name, its colon and its value."""
    columns = shutil.get_terminal_size().columns
    folded = []
    for line in text.split("\n"):
        words = line.lstrip()
        margin = line[: len(line) - len(words)]
        if len(line) > columns:
            margin = margin[: columns // 8]
        rows = textwrap.wrap(
            words.replace(": ", ":\xa0"),
            columns,
            initial_indent=margin,
            subsequent_indent=margin,
            break_on_hyphens=False,
        )
        folded += [row.replace("\xa0", " ") for row in rows] or [""]
    return "\n".join(folded)


class PlainScreen:
    """Lines in, text out; nothing that a printer could not do."""

    def ask(self, message: str) -> str:
        return self.read(message)

    def read(self, message: str) -> str:
        return input(message)

    def write(self, text: str) -> None:
        print(fold(printable(text)) if sys.stdout.isatty() else text, end="", flush=True)

    def code(self, prompt: str, language: str) -> "PlainCode":
        return PlainCode(prompt)


class PlainCode:
    """Code on its way to a plain screen: the prompt's last line, and what follows it piece by piece."""

    def __init__(self, prompt: str):
        self.write(prompt[prompt.rfind("\n") + 1 :])

    def write(self, text: str) -> None:
        print(printable(text), end="", flush=True)

    def end(self) -> None:
        print(flush=True)
