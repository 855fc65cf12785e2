"""Record a conversation with interact.py as an SVG picture of the terminal.

pip install pexpect pyte rich
python docs/record_terminal.py --model_path models/Qwen2.5-Coder-0.5B-Instruct --temperature 0.6 --seed 1

The program runs in a pseudo-terminal. An emulator (pyte) interprets its output and holds the screen with all colours.
The same model, seed and version give the same picture.
"""

import argparse
import io
import os
import re
import sys
from pathlib import Path

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COLUMNS, ROWS = 100, 60
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
# What is typed, and the text to wait for in the program's answer.
SESSION = [
    ("def count_words(text):\r\r", "ended: "),
    (":n 3\r", "n 3\r"),
    ("def is_palindrome(text):\r\r", "1 of "),
    ("\t", "2 of "),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", default="tiny")
    parser.add_argument("--output", default=str(ROOT / "docs" / "conversation.svg"))
    flags, others = parser.parse_known_args()  # the other flags are for interact.py
    command = ["interact.py", "--model_path", flags.model_path, *others]
    screen = record(command)
    draw([Text("$ python " + " ".join(command), "bold"), *read_screen(screen)], COLUMNS, Path(flags.output))


def record(command: list[str]) -> pyte.Screen:
    environment = os.environ | {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "HF_HUB_OFFLINE": "1"}
    child = pexpect.spawn(sys.executable, command, cwd=ROOT, env=environment, dimensions=(ROWS, COLUMNS), timeout=300)
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)

    def wait_for(text: str) -> None:
        child.expect_exact(text)
        stream.feed(child.before + child.after)

    wait_for("[python]:")
    child.send("\r")
    wait_for(">>>")
    for typed, answer in SESSION:
        child.send(typed)
        wait_for(answer)
        wait_for(">>>")
    child.send("\x04")
    child.expect(pexpect.EOF)
    return screen


def read_screen(screen: pyte.Screen) -> list[Text]:
    lines = []
    for row in range(screen.lines):
        line = Text()
        for column in range(screen.columns):
            cell = screen.buffer[row][column]
            line.append(cell.data, Style(color=colour(cell.fg), bold=cell.bold, reverse=cell.reverse))
        line.rstrip()
        lines.append(line)
    while not lines[-1].plain.strip(" >"):  # the last, empty prompt
        lines.pop()
    return lines


def draw(lines: list[Text], columns: int, path: Path) -> None:
    console = Console(record=True, width=columns, file=io.StringIO())
    for line in lines:
        console.print(line, no_wrap=True, crop=True)
    svg = console.export_svg(title="AutoCoder", unique_id="terminal")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # use the reader's own font and download none
    path.write_text(svg.replace("Fira Code, monospace", FONT), encoding="utf-8")


def colour(name: str) -> str | None:
    """Translate a colour from pyte, which is a name or six hexadecimal digits, for rich."""
    if name == "default":
        return None
    if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name):
        return f"#{name}"
    return {"brown": "yellow"}.get(name, name.replace("bright", "bright_"))


if __name__ == "__main__":
    main()
