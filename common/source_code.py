"""The programming languages, their control words, and how a source file is read."""

from pathlib import Path

from common.command import InputError

# The two control words of the reference; a dataset row's label, in lower case, names its word.
LANGUAGES = ("python", "java")
SPECIAL_WORDS = {"pad_token": "<pad>", "additional_special_tokens": [f"<{language}>" for language in LANGUAGES]}
LABELS = {".py": "Python", ".java": "Java"}


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
