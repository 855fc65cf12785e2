"""What every command shares: one-line errors, usable streams, and flags made from a dataclass."""

import argparse
import dataclasses
import math
import operator
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

T = TypeVar("T")


class InputError(Exception):
    """A mistake in what the user gave us. The message is one line: what, where, and what to do."""


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run `main` as a program: a user's mistake or a full disk ends in one line on stderr and exit code 2."""
    # torch's threads wait for each other by spinning, unless told otherwise before torch is loaded. Where another
    # program uses a core too, that made training steps 3.3 times as slow.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["MPLBACKEND"] = "agg"  # charts are written to files; the one that the user has set may not exist
    _prepare_streams()
    code: Any = 0
    try:
        try:
            main()
        except SystemExit as end:  # of -h, for one
            code = end.code
        sys.stdout.flush()
    except InputError as error:
        code = _fail(str(error))
    except OSError as error:
        if error.strerror is None:  # not the operating system's own error, so a defect of ours: show where
            raise
        is_left = isinstance(error, BrokenPipeError)  # by the reader of our stdout, as in `... | head`
        code = 1 if is_left else _fail(f"{error.filename or 'input/output'}: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where Python, as it ends, writes what stdout did not take
    except MemoryError:
        code = _fail("out of memory")
    except KeyboardInterrupt:
        code = 130
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C while Python ends would show a traceback
    sys.exit(code)


def _prepare_streams() -> None:
    """Make the three streams usable: they may be closed, or of an encoding that lacks characters.

    Where the locale is not UTF-8 (LC_ALL=C), Python takes neither file names nor arguments as text, and libraries write
    files that others cannot read; so the program starts again in Python's UTF-8 mode. Windows has it for names anyway.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as by `>&-`; a new file gets its number, the lowest
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has none
        sys.stdout.reconfigure(errors="backslashreplace")


def _fail(message: str) -> int:
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)  # nothing in it may move the cursor
    print(f"error: {line}", file=sys.stderr)
    return 2


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are InputErrors, and whose help shows every default."""

    def __init__(self, description: str | None, **options: Any):
        super().__init__(description=description, formatter_class=_HelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} -h)")

    def print_help(self, file: TextIO | None = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse keeps quiet about a stdout that is full


_LIMITS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which values a flag takes."""

    kind: Callable[[str], Any]  # int, float, str, or a function of the text that raises ValueError with a reason
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Sequence[str] | None = None

    def read(self, name: str, text: str) -> Any:
        """The value that `text` spells. Raises InputError, which calls it `name`, if the flag does not take it."""
        if text == "":
            raise InputError(f"{name} '': must not be empty")
        try:
            value = self.kind(text)
        except ValueError as error:
            wanted = {int: "must be a whole number", float: "must be a number"}.get(self.kind, str(error))
            raise InputError(f"{name} {_quoted(text)}: {wanted}") from None
        self._check_range(name, text, value)
        return value

    def check(self, name: str, value: Any) -> None:
        """Refuse a value given in Python, as `read` does one that was typed."""
        if self.kind not in (int, float):
            self.read(name, value)
        elif type(value) not in (int, self.kind):
            raise InputError(f"{name} {_quoted(value)}: must be {self.kind.__name__}")
        else:
            self._check_range(name, value, value)

    def _check_range(self, name: str, shown: Any, value: Any) -> None:
        limits = [(words, getattr(self, words.replace(" ", "_")), fits) for words, fits in _LIMITS.items()]
        broken = [f"{words} {limit}" for words, limit, fits in limits if limit is not None and not fits(value, limit)]
        if isinstance(value, float) and not math.isfinite(value):
            broken = ["finite"]
        elif self.choices and value not in self.choices:
            broken = [f"one of {', '.join(self.choices)}"]
        if broken:
            raise InputError(f"{name} {_quoted(shown)}: must be {broken[0]}")


def _quoted(value: Any) -> str:
    text = str(value)
    return shlex.quote(text if len(text) <= 80 else f"{text[:77]}...")


def flag(
    default: Any,
    help: str,
    *aliases: str,
    type: Callable[[str], Any] | None = None,
    choices: Sequence[str] | None = None,
    positional: bool = False,
    nargs: str | None = None,
    metavar: str | None = None,
    **limits: float,
) -> Any:
    """A dataclass field that is also a command-line flag, `--<field name>` and `aliases`.

    A typed value has to be within the limits, finite and not empty; the default may be anything, as None for none.

    Args:
        type: int, float, str or a function as `folder_name`; else the default's.
        positional: the value stands alone, without `--<field name>`.
        limits: at_least, at_most, above, below.
    """
    rule, options = None, {"help": help, "action": "store_true"}
    if not isinstance(default, bool):
        rule = Rule(type or default.__class__, choices=choices, **limits)
        metavar = metavar or ("{" + ",".join(choices) + "}" if choices else None)
        options = {"help": help, "action": _Read, "rule": rule, "nargs": nargs, "metavar": metavar}
    names = () if positional else aliases
    metadata = {"rule": rule, "options": options, "aliases": names, "positional": positional}
    return dataclasses.field(default=default, metadata=metadata)


class Flags:
    """Base of a dataclass of flags: values given in Python are checked as typed ones are, by an InputError."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), field.metadata["rule"]
            if rule and (value != field.default or type(value) is not type(field.default)):
                for one in value if field.metadata["options"]["nargs"] else (value,):
                    rule.check(f"--{field.name}", one)


class _Read(argparse.Action):
    """Reads a flag's text by its rule, under the name that the user typed."""

    def __init__(self, *, rule: Rule, **options: Any):
        super().__init__(**options)
        self.rule = rule

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        texts = values if isinstance(values, list) else [values]
        read = [self.rule.read(option_string or self.dest, text) for text in texts or ["--"]]  # which argparse drops
        setattr(namespace, self.dest, read if self.nargs else read[0])


def add_flags(parser: argparse.ArgumentParser, config_class: type) -> None:
    """Add the fields of `config_class` to a parser."""
    for field in dataclasses.fields(config_class):
        options = field.metadata["options"]
        if field.metadata["positional"]:
            parser.add_argument(field.name, **options)
        else:
            names = [f"--{field.name}", *field.metadata["aliases"]]
            parser.add_argument(*names, dest=field.name, default=field.default, **options)


def parse_flags(config_class: type[T], description: str | None, argv: Sequence[str] | None = None) -> T:
    """Make `config_class` from the command line. Its fields are the flags, so a default is stated once.

    Raises:
        InputError: an unknown flag, or a value that a flag's rule or the class's `__post_init__` refuses.
    """
    parser = Parser(description)
    add_flags(parser, config_class)
    return config_class(**vars(parser.parse_args(argv)))


# ---- kinds of text that a flag takes


def utf8(text: str) -> str:
    """Any text; the command line may hold bytes that are none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not UTF-8") from None
    return text


def folder_name(name: str) -> str:
    """The name of a run or a dataset: one folder, below the folder for all of them, on any system."""
    utf8(name)
    plain = Path(name).name == name and not name.startswith(".") and "\\" not in name and name.isprintable()
    if not plain or len(name.encode()) > 200:
        raise ValueError("must be a plain folder name, as in my_run-2")
    return name


def output_folder(name: str) -> str:
    """A folder to write into; it exists and can be written into, or it can be made."""
    return _writable(name, Path(name), "a file; name a folder")


def output_file(*suffixes: str) -> Callable[[str], str]:
    """The kind of flag that names a file to write; it has one of `suffixes` if there are any."""

    def kind(name: str) -> str:
        path = Path(name)
        if suffixes and path.suffix.lower() not in suffixes:
            raise ValueError(f"must end in {' or '.join(suffixes)}")
        if os.path.lexists(path) and not path.is_file() and (path.exists() or not path.is_symlink()):
            raise ValueError("a folder or a device; name a file")
        return _writable(name, path.parent, "its folder is a file; name another")

    return kind


def _writable(name: str, folder: Path, not_a_folder: str) -> str:
    """`name`, if files can be made in `folder` or, if that does not exist yet, in the one that is to hold it."""
    try:
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise ValueError(not_a_folder)
        with tempfile.TemporaryFile(dir=folder):  # permissions alone do not tell, as on a read-only disk
            pass
    except OSError as error:
        raise ValueError(f"cannot be written ({error.strerror})") from None
    return name
