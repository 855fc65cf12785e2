"""One program in one confined process: python run_program.py < a JSON object, as `Sandbox.run` sends it.

If the program runs to its end, or ends with an exception, this writes what became of it to a pipe, after a number that
it was given for this run. All else, such as `sys.exit` in a thread or `os._exit(0)`, is no verdict. The number is a
local variable here: code that searches the frames of its callers, or all objects, can find it.
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
    builtins.exit = builtins.quit = sys.exit  # which `python -S` lacks
    confine(job["level"], job["pipe"], packages, job["seconds"], job["parent"])
    run(job.pop("program"), job.pop("number"), job["pipe"])


def run(program: str, number: str, pipe: int) -> None:
    write, end = os.write, os._exit  # before the program can put something else in their place
    reserve = bytearray(2**20)  # to tell of an end of the memory too
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
    """What the exception says that ended the program."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return "ended the process"
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError) and error.errno in NOT_PERMITTED:
        return "not permitted"
    return "failed" if isinstance(error, AssertionError) else "raised"


if __name__ == "__main__":
    main()
