"""Run one program in one confined process. `Sandbox.run` starts this and sends a JSON object to standard input.

When the program has run to its end or raised an exception, this writes a verdict to a pipe, after a random number that
the JSON object holds. A program that ends in another way, such as `os._exit(0)`, gives no verdict. The number is a
local variable here, so code that searches the frames of its callers, or all objects, can find it.
"""

import builtins
import errno
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sandbox.confinement import confine

NOT_PERMITTED = (errno.EPERM, errno.EACCES, errno.EROFS)


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    packages = [Path(package) for package in job["packages"]]
    sys.path[:] = [*sys.path[2:], *sorted({str(package.parent) for package in packages})]
    builtins.exit = builtins.quit = sys.exit  # `python -S` does not define them
    confine(job["level"], job["pipe"], packages, job["seconds"], job["parent"])
    run(job.pop("program"), job.pop("number"), job["pipe"])


def run(program: str, number: str, pipe: int) -> None:
    write, end = os.write, os._exit  # saved before the program can replace them
    reserve = bytearray(2**20)  # freed to have memory for the report when the program has used all
    kind, detail = "not parseable", ""
    try:
        code = compile(program, "<program>", "exec", dont_inherit=True)
        kind = ""
        exec(code, {})
        kind = "passed"
    except BaseException as error:
        del reserve
        error.__traceback__ = None
        kind = kind or kind_of(error)
        try:
            detail = f"{type(error).__name__}: {error}"[:300]
        except BaseException:
            detail = type(error).__name__
    write(pipe, f"{number} {kind}: {detail}".encode(errors="replace").replace(b"\n", b" ") + b"\n")
    end(0)


def kind_of(error: BaseException) -> str:
    """The verdict for the exception that ended the program."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return "ended the process"
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError) and error.errno in NOT_PERMITTED:
        return "not permitted"
    return "failed" if isinstance(error, AssertionError) else "raised"


if __name__ == "__main__":
    main()
