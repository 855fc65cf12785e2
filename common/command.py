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
SHOWN = 400  # characters of each end of a long error


class InputError(Exception):
    """A mistake in the user's input. The message is one line: what is wrong, where, and what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run `main` as a program: a user's mistake or a full disk ends in one line on stderr and exit code 2."""
    # By default torch's threads wait for each other by spinning; this must be changed before torch is loaded. When
    # another program used a core too, spinning made training steps 3.3 times as slow.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["MPLBACKEND"] = "agg"  # charts are written to files; the user's backend may not exist
    _prepare_streams()
    code: Any = 0
    try:
        try:
            main()
        except SystemExit as end:  # for example from -h
            code = end.code
        sys.stdout.flush()
    except InputError as error:
        code = _fail(str(error))
    except OSError as error:
        if error.strerror is None:  # not from the operating system, so it is our bug: show the traceback
            raise
        reader_ended = isinstance(error, BrokenPipeError)  # as in `... | head`
        code = 1 if reader_ended else _fail(f"{error.filename or 'input/output'}: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes the rest of stdout there when it ends
    except MemoryError:
        code = _fail("out of memory")
    except KeyboardInterrupt:
        code = 130
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C while Python ends would show a traceback
    sys.exit(code)


def _prepare_streams() -> None:
    """Make the three streams usable: they may be closed, or their encoding may lack characters.

    If the locale is not UTF-8 (LC_ALL=C), Python cannot decode file names and arguments, and libraries write files that
    others cannot read. So the program starts again in Python's UTF-8 mode.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as by `>&-`; a newly opened file gets its number
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's stdout has no reconfigure
        sys.stdout.reconfigure(errors="backslashreplace")


def _fail(message: str) -> int:
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)  # no control characters on the terminal
    if len(line) > 2 * SHOWN:  # a name or a value may fill screens; what to do stands at the end
        line = f"{line[:SHOWN]} ... {line[-SHOWN:]}"
    print(f"error: {line}", file=sys.stderr)
    return 2


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        if isinstance(action.default, tuple):
            return f"{action.help} (default: {' '.join(action.default)})"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are InputErrors, and whose help shows the defaults."""

    def __init__(self, description: str | None, **options: Any):
        super().__init__(description=description, formatter_class=_HelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} -h)")

    def print_help(self, file: TextIO | None = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse hides the error of a full disk


@dataclasses.dataclass(frozen=True)
class Rule:
    """The values that a flag accepts."""

    kind: Callable[[str], Any]  # int, float, str, or a function of the text that raises ValueError with a reason
    choices: Sequence[str] | None = None
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def check(self, name: str, given: Any, is_text: bool = False) -> Any:
        """Return the value that a flag was given in Python or, with `is_text`, on the command line.

        Raises:
            InputError: the flag does not accept it. The message begins with `name`.
        """
        try:
            if is_text or self.kind not in (int, float):
                value = self.kind(given)
            elif type(value := given) not in (int, self.kind):
                raise ValueError
            wrong = "must not be empty" if value == "" else self._fault(value)
        except ValueError as error:
            wrong = {int: "must be a whole number", float: "must be a number"}.get(self.kind, str(error))
        if wrong:
            text = str(given)
            raise InputError(f"{name} {shlex.quote(text if len(text) <= 80 else f'{text[:77]}...')}: {wrong}")
        return value

    def _fault(self, value: Any) -> str | None:
        if isinstance(value, float) and not math.isfinite(value):
            return "must be finite"
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        tests = {"at_least": operator.ge, "at_most": operator.le, "above": operator.gt, "below": operator.lt}
        for name, fits in tests.items():
            limit = getattr(self, name)
            if limit is not None and not fits(value, limit):
                return f"must be {name.replace('_', ' ')} {limit}"
        return None


def flag(
    default: Any,
    help: str,
    *aliases: str,
    type: Callable[[str], Any] | None = None,
    positional: bool = False,
    nargs: str | None = None,
    **limits: Any,
) -> Any:
    """A dataclass field that is also a command-line flag, `--<field name>` and `aliases`.

    Other values than the default must be within the limits, finite and not empty.

    Args:
        type: int, float, str or a function like `folder_name`; default: the type of the default value.
        positional: the value is typed alone, without `--<field name>`.
        nargs: "+": the value is a list.
        limits: at_least, at_most, above, below, choices.
    """
    rule, options = None, {"help": help, "action": "store_true"}
    if not isinstance(default, bool):
        rule = Rule(type or default.__class__, **limits)
        metavar = "{" + ",".join(rule.choices) + "}" if rule.choices else None
        options = {"help": help, "action": _Read, "rule": rule, "nargs": nargs, "metavar": metavar}
    metadata = {"rule": rule, "options": options, "aliases": aliases, "positional": positional}
    return dataclasses.field(default=default, metadata=metadata)


class Flags:
    """Base class of a dataclass of flags. Values given in Python are checked like typed ones (InputError)."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), field.metadata["rule"]
            if rule and (value != field.default or type(value) is not type(field.default)):
                for one in value if field.metadata["options"]["nargs"] else (value,):
                    rule.check(f"--{field.name}", one)


class _Read(argparse.Action):
    """Reads a flag's text by its rule. Errors show the name that the user typed."""

    def __init__(self, *, rule: Rule, **options: Any):
        super().__init__(**options)
        self.rule = rule

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        texts = values if isinstance(values, list) else [values]
        name = option_string or self.dest
        read = [self.rule.check(name, text, is_text=True) for text in texts or ["--"]]  # argparse drops a lone --
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
    """Make `config_class` from the command line. Its fields are the flags, so each default is written only once.

    Raises:
        InputError: a flag is unknown, or its rule or the class's `__post_init__` refuses a value.
    """
    parser = Parser(description)
    add_flags(parser, config_class)
    return config_class(**vars(parser.parse_args(argv)))


# ---- kinds of text that a flag takes


def utf8(text: str) -> str:
    """Accept any valid text; a command line may contain bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not UTF-8") from None
    return text


def folder_name(name: str) -> str:
    """Accept a plain folder name, for a run or a dataset, that is valid on any system."""
    utf8(name)
    plain = Path(name).name == name and not name.startswith(".") and "\\" not in name and name.isprintable()
    if not plain or len(name.encode()) > 200:
        raise ValueError("must be a plain folder name, as in my_run-2")
    return name


def output_folder(name: str) -> str:
    """Accept a folder that can be written into, or that can be created."""
    return _writable(name, Path(name), "a file; name a folder")


def output_file(*suffixes: str) -> Callable[[str], str]:
    """Return a flag type for a file to write, with one of `suffixes` if any are given."""

    def kind(name: str) -> str:
        path = Path(name)
        if suffixes and path.suffix.lower() not in suffixes:
            raise ValueError(f"must end in {' or '.join(suffixes)}")
        if os.path.lexists(path) and not path.is_file() and (path.exists() or not path.is_symlink()):
            raise ValueError("a folder or a device; name a file")
        return _writable(name, path.parent, "its folder is a file; name another")

    return kind


def _writable(name: str, folder: Path, not_a_folder: str) -> str:
    """Return `name` if files can be created in `folder` or, if it does not exist, in its nearest existing parent."""
    try:
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise ValueError(not_a_folder)
        with tempfile.TemporaryFile(dir=folder):  # permissions are not enough: the disk may be read-only
            pass
    except OSError as error:
        raise ValueError(f"cannot be written ({error.strerror})") from None
    return name
