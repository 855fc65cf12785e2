"""Confine this process so that it can do little more than compute. There are three levels, the strongest first.

namespaces  the process sees only Python's library and the system's (read-only), an empty working folder in memory, and
            no network; by Linux's namespaces, which need root or a system that allows them to users
landlock    the process can read the same libraries and write nothing, and has no network; by Linux's Landlock
limits      the process can use files as the user can who starts it

At each level the process has its own session, no standard input, and limits on processor time, memory, file size and
open files. On Linux it can start no other process, has no capabilities, is killed first when the machine has no memory
left, and can make only the system calls that `system_calls.py` lists.

This does not protect from bugs of the kernel, from a slow run on a busy processor, or from side channels such as the
processor's caches. At `landlock`, the process can find out names and sizes of files. At `limits`, it can read and
change the user's files.
"""

import ctypes
import os
import re
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from sandbox.system_calls import filter_system_calls

MEMORY = 2**29  # bytes of address space
FILE_SIZE = 16 * 2**20
FILES_IN_MEMORY = b"size=64m,nr_inodes=4096,mode=755"  # options of the working folder's file system
OPEN_FILES = 64
NOBODY = 65534

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = 1 << 17, 1 << 27, 1 << 28, 1 << 30
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
LANDLOCK = 444  # landlock_create_ruleset; landlock_add_rule and landlock_restrict_self follow
SYSTEM = [Path("/") / name for name in ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")]

_libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None


def confine(level: str, keep: int, packages: Sequence[Path], seconds: int, parent: int) -> None:
    """Confine this process, which must have only one thread. This cannot be undone.

    If the level is not available here, this writes the reason to standard error and ends the process.

    Args:
        keep: the only file descriptor that stays open; standard input, output and error become /dev/null.
        packages: folders that can be read in addition to Python's library and the system's.
        seconds: of processor time; then the process gets SIGXCPU, and a second later SIGKILL.
        parent: the process's parent; when it ends, this process ends too (Linux).
    """
    null = os.open(os.devnull, os.O_RDWR)
    errors = os.dup(2)
    for standard in range(3):
        os.dup2(null, standard)
    readable = [path for path in (Path(sys.base_prefix), *packages) if path != Path("/")]
    truncate = True
    try:
        if sys.platform == "linux":
            Path("/proc/self/oom_score_adj").write_text("1000")
            if level == "namespaces":
                _enter_namespaces(readable)
            _call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)
            _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            _call("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
            if level == "landlock":
                truncate = _landlock(readable) >= 3
        _limit(seconds)
        low, high = sorted((keep, errors))
        os.closerange(3, low)
        os.closerange(low + 1, high)
        os.closerange(high + 1, OPEN_FILES + 1024)
        if sys.platform == "linux":
            filter_system_calls(own_files=level == "namespaces", truncate=truncate)
    except BaseException as error:
        os.write(errors, f"{level}: {error}".encode())
        os._exit(1)
    os.close(errors)


def _limit(seconds: int) -> None:
    limits = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),
        resource.RLIMIT_FSIZE: (FILE_SIZE, FILE_SIZE),
        resource.RLIMIT_NOFILE: (OPEN_FILES, OPEN_FILES),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_AS: (MEMORY, MEMORY),
    }
    for kind, values in limits.items():
        try:
            resource.setrlimit(kind, values)
        except (ValueError, OSError):
            if sys.platform == "linux":  # macOS has no limit on the address space
                raise


# ---- namespaces


def _enter_namespaces(readable: Sequence[Path]) -> None:
    user, group, is_root = os.getuid(), os.getgid(), os.geteuid() == 0
    _call("unshare", CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET | (0 if is_root else CLONE_NEWUSER))
    if not is_root:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{NOBODY} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{NOBODY} {group} 1")
    _change_root(readable)
    if is_root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _change_root(readable: Sequence[Path]) -> None:
    root = Path("/proc")  # the new root is mounted here; any folder that need not be visible inside would do
    with Path("/proc/self/mountinfo").open("rb") as mounts:
        _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        _call("mount", b"none", os.fsencode(root), b"tmpfs", MS_NOSUID, FILES_IN_MEMORY)
        for path in [*SYSTEM, *readable]:
            if path.is_symlink() and path in SYSTEM:
                (root / path.name).symlink_to(path.readlink())
            elif path.exists():
                _bind(path, root / path.relative_to("/"))
        for name in ("null", "zero", "random", "urandom"):
            _bind(Path("/dev", name), root / "dev" / name)
        mounts.seek(0)
        for line in mounts.read().splitlines():  # make what was bound, and all mounts below it, read-only
            point = Path(os.fsdecode(re.sub(rb"\\(\d{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4])))
            if point.is_relative_to(root) and point != root and point.exists():  # the others are hidden
                flags = MS_BIND | MS_REMOUNT | os.statvfs(point).f_flag & 0xF  # a user may not remove these flags
                flags |= 0 if point.parent == root / "dev" else MS_RDONLY | MS_NOSUID | MS_NODEV
                _call("mount", None, os.fsencode(point), None, flags, None)
    for folder in ("dev/shm", "tmp", "tmp/work"):
        (root / folder).mkdir(exist_ok=True)
        (root / folder).chmod(0o1777)
    os.chdir(root)
    _call("syscall", PIVOT_ROOT[os.uname().machine], b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/tmp/work")


def _bind(source: Path, target: Path) -> None:
    if target.exists():  # it is below a folder that was bound before
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.mkdir() if source.is_dir() else target.touch()
    _call("mount", os.fsencode(source), os.fsencode(target), None, MS_BIND | MS_REC, None)


# ---- Landlock


def _landlock(readable: Sequence[Path]) -> int:
    """Let this process only read and execute the files below `readable`. Source: docs.kernel.org, Landlock.

    Returns:
        the version of the kernel's Landlock.
    Raises:
        OSError: the kernel has no Landlock.
    """
    version = _call("syscall", LANDLOCK, None, 0, 1)
    files = (1 << 13) - 1 | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    files |= 1 << 15 if version >= 5 else 0
    network, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)  # TCP; abstract sockets and signals
    attributes = struct.pack("QQQ", files, network, scopes)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _call("syscall", LANDLOCK, attributes, len(attributes), 0)
    execute, write_file, read_file, read_folder = 1, 1 << 1, 1 << 2, 1 << 3
    allowed = {path.parent: read_folder for path in readable}  # to find a package, Python lists its parent folder
    allowed |= dict.fromkeys((*SYSTEM, *readable), execute | read_file | read_folder)
    allowed |= {Path("/dev", name): read_file for name in ("zero", "random", "urandom")}
    allowed[Path("/dev/null")] = read_file | write_file
    for path, rights in allowed.items():
        if path.exists():
            opened = os.open(path, os.O_PATH)
            rights &= -1 if path.is_dir() else ~read_folder
            _call("syscall", LANDLOCK + 1, rules, 1, struct.pack("=Qi", rights, opened), 0)
            os.close(opened)
    _call("syscall", LANDLOCK + 2, rules, 0)
    os.close(rules)
    return version


def _call(name: str, *arguments: bytes | int | None) -> int:
    """Call a function of the C library. Raises OSError if it fails."""
    result = getattr(_libc, name)(*(ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result
