"""What every command shares: one-line errors, and flags made from a dataclass."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class InputError(Exception):
    """A mistake in what the user gave us. The message is one line: what, where, and what to do."""


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run `main` as a program: a user's mistake or a failing disk ends in one line on stderr and exit code 2."""
    # torch's threads wait for each other by spinning, unless told otherwise before torch is loaded. Where another
    # program uses a core too, that made training steps 3.3 times as slow.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        sys.exit(_fail(str(error)))
    except BrokenPipeError:  # the reader of our stdout has left, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.strerror is None:  # not the operating system's own error, so a defect of ours: show where
            raise
        sys.exit(_fail(f"{error.filename or 'input/output'}: {error.strerror}"))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are InputErrors, and whose help shows every default."""

    def __init__(self, description: str | None, **kwargs: Any):
        super().__init__(
            description=description,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} -h)")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def flag(default: Any, help: str, *aliases: str, **argparse_options: Any) -> Any:
    """A dataclass field that is also a command-line flag, `--<field name>` and `aliases`."""
    options = {"help": help, **argparse_options}
    if isinstance(default, bool):
        options["action"] = "store_true"
    elif "type" not in options:
        options["type"] = type(default)
    return dataclasses.field(default=default, metadata={"aliases": aliases, "options": options})


def parse_flags(
    config_class: type[T],
    description: str | None,
    argv: Sequence[str] | None = None,
    recipes: Callable[[str], dict[str, Any]] | None = None,
) -> T:
    """Make `config_class` from the command line. Its fields are the flags, so a default is stated once.

    Args:
        recipes: gives the defaults that stand instead for a name of --recipe.
    Raises:
        InputError: an unknown flag, or a value that the flag's type or the class's `__post_init__` refuses.
    """
    parser = Parser(description)
    for field in dataclasses.fields(config_class):
        names = [f"--{field.name}", *field.metadata["aliases"]]
        parser.add_argument(*names, dest=field.name, default=field.default, **field.metadata["options"])
    flags = parser.parse_args(argv)
    if recipes and flags.recipe:
        parser.set_defaults(**recipes(flags.recipe))
        flags = parser.parse_args(argv)
    return config_class(**vars(flags))
