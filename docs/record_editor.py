"""Record Vim with llama.vim as an SVG picture of the terminal: before and after Tab is pressed.

python serve.py --model_path Qwen/Qwen2.5-Coder-0.5B-Instruct
pip install pexpect pyte rich
python docs/record_editor.py --plugin ~/.vim/pack/plugins/start/llama.vim

Vim runs in a pseudo-terminal, with the settings that serve.py prints. An emulator (pyte) interprets its output and
holds the screen with all colours. The model samples, so every run gives a different picture.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pexpect
import pyte
from record_terminal import ROOT, draw, read_screen
from rich.text import Text

sys.path.insert(0, str(ROOT))
from serve import usage

COLUMNS, ROWS = 92, 19
GHOST = "ff5f00"  # llama.vim's colour for its suggestion
CODE = """\
import csv
from collections import Counter


def read_rows(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:


def main() -> None:
    rows = read_rows("sales.csv")
    towns = Counter(row["town"] for row in rows)
    print(towns.most_common(3))


if __name__ == "__main__":
    main()
"""
LINE = 6  # the new line is inserted after this one
TYPED = "        return "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plugin", type=Path, required=True, help="folder of llama.vim")
    parser.add_argument("--address", default="http://127.0.0.1:8012", help="where serve.py listens")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "editor.svg")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before, after = record(Path(folder), flags.plugin, flags.address)
    captions = Text("`return` is typed, and the rest proposed:\n", "bold"), Text("\nafter Tab:\n", "bold")
    draw([captions[0], *before, captions[1], *after], COLUMNS, flags.output)


def record(folder: Path, plugin: Path, address: str) -> tuple[list[Text], list[Text]]:
    """Return the screen with the suggestion, and the screen after Tab has inserted it."""
    (folder / "sales.py").write_text(CODE)
    setting = re.search(r"let g:llama_config = .*?\}", usage("", address, False, True), re.DOTALL)[0]
    (folder / "vimrc").write_text(
        f"set nocompatible runtimepath^={plugin} noruler noshowcmd laststatus=0 fillchars=eob:\\ \n"
        f"syntax on\n{setting}\nlet g:llama_config.show_info = 0\n"
    )
    environment = os.environ | {"TERM": "screen-256color"}  # pyte knows all its control sequences
    child = pexpect.spawn(
        "vim", ["-N", "-u", "vimrc", "sales.py"], cwd=folder, env=environment, dimensions=(ROWS, COLUMNS)
    )
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)

    def show(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with suppress(pexpect.TIMEOUT):
                stream.feed(child.read_nonblocking(65536, timeout=0.1))

    def suggestion() -> list[Text]:
        for _ in range(20):
            show(1)
            if any(cell.fg == GHOST for row in screen.buffer.values() for cell in row.values()):
                return read_screen(screen)
        raise SystemExit("Vim shows no suggestion: is serve.py running, with a model that can infill?")

    show(1)
    child.send(f"\r{LINE}Go")  # Enter, in case an old Vim waits with a warning
    for character in TYPED:
        child.send(character)
        show(0.1)
    before = suggestion()
    child.send("\t")
    show(0.3)  # short, so that the next suggestion is not there yet
    after = read_screen(screen)
    child.send("\x1b:q!\r")
    child.expect(pexpect.EOF)
    return before, after


if __name__ == "__main__":
    main()
