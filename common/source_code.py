"""The programming languages, their control words, and how a source file is read."""

import codecs
import io
import tokenize
from pathlib import Path

from common.command import InputError

# A file name's ending -> the label of its rows in a dataset. In lower case it is the language and the control word.
LABELS = {".py": "Python", ".java": "Java"}
LANGUAGES = tuple(label.lower() for label in LABELS.values())
COMMENTS = {"python": "#", "java": "//"}  # what begins a comment up to the line's end; // languages also have /* */
# The control words of the reference.
SPECIAL_WORDS = {"pad_token": "<pad>", "additional_special_tokens": [f"<{language}>" for language in LANGUAGES]}

# UTF-32 first, since its mark begins with UTF-16's. Each of these codecs drops the mark.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
_SAVE_AS_UTF8 = "save it as UTF-8, or name its encoding in its first line, as in # coding: latin-1"


class NotSourceCode(InputError):
    """A file is not text, or not in the expected encoding. `reason` is the message without the file's name."""

    def __init__(self, where: str, reason: str, remedy: str = _SAVE_AS_UTF8):
        super().__init__(f"{where}: {reason}; {remedy}")
        self.reason = reason


def language_of(file: Path) -> str:
    """The language of a source file, by the ending of its name; empty if it is unknown."""
    return label_of(file.name).lower()


def label_of(file_name: str) -> str:
    """The label of a source file's rows in a dataset; empty if it is not a source file."""
    return LABELS.get(Path(file_name).suffix.lower(), "")


def read_source(file: Path) -> str:
    """The text of a source file, decoded by `decode_source`.

    Raises:
        NotSourceCode: as in `decode_source`, or it is not a regular file.
        OSError: it cannot be read.
    """
    if file.exists() and not file.is_file():  # reading a pipe would wait for ever
        raise NotSourceCode(str(file), "not a regular file", "name a source file")
    return decode_source(file.read_bytes(), str(file))


def decode_source(content: bytes, name: str) -> str:
    """A source file's text, without a byte-order mark and with every line end as `\\n`.

    The encoding is that of the byte-order mark, else the one that a comment in the first two lines names (PEP 263),
    else UTF-8.

    Raises:
        NotSourceCode: the content is binary, or not in that encoding. The message begins with `name`.
    """
    encoding = next((codec for mark, codec in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "")
    if b"\0" in content and encoding not in ("utf-16", "utf-32"):
        raise NotSourceCode(name, "binary, as it has NUL bytes", "name a source file")
    if not encoding:
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        except SyntaxError:  # it names an unknown encoding, or its first lines are not UTF-8
            encoding = "utf-8"
    try:
        text = content.decode(encoding)
        text.encode()  # some codecs give half a surrogate pair
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise NotSourceCode(f"{name}:{line}", "not " + encoding.upper().removesuffix("-SIG")) from None
    except (LookupError, ValueError):
        raise NotSourceCode(name, f"{encoding} is no encoding of a text") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
