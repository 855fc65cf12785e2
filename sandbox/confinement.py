"""A process that can do nothing but compute: three levels, the best that this machine allows.

namespaces  own view of files (Python's library and the system's, read-only; an empty working folder in memory),
            processes, network and users, by Linux's namespaces: as root, or as a user where these are allowed
landlock    files read-only by Linux's Landlock, no network, no new processes, no signals, by a system-call filter
limits      limits alone, on Linux with that filter; files are as open as to whoever starts it

At each level: a session of its own, no standard input, an empty environment, limits on processor time, memory, file
size, processes and open files, and the first to be killed when the machine's memory runs out. On Linux a system-call
filter also denies sockets and what only attacks on the kernel need.

This does not protect from faults of the kernel, from time lost to a busy processor, or from side channels such as the
processor's caches. At `landlock`, what is readable stays so for its own part (names and sizes of other files can be
asked for); at `limits` a program can read and change the user's files.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

LEVELS = ("namespaces", "landlock", "limits")
MEMORY = 2**29  # bytes of address space of a process
FILE_SIZE = 16 * 2**20
FILES_IN_MEMORY = "size=64m,nr_inodes=4096"  # of the working folder's file system
PROCESSES = 32
OPEN_FILES = 64
EXIT_MEMORY = 77  # of a process that ran out of memory where it could not say so otherwise

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 1 << 17, 1 << 27, 1 << 28, 1 << 29, 1 << 30
CLONE_THREAD = 1 << 16
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38

_libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None


def confine(work: Callable[[], None], level: str, keep: Sequence[int], packages: Sequence[Path], seconds: int) -> None:
    """Do the work in this process, or in one of its children, and end. To be called in a fork of a small process.

    Ends with 0 after the work, with 128 + n after signal n. Where the level cannot be reached, ends with 1.

    Args:
        keep: file descriptors that stay open.
        packages: files and folders that can be read besides Python's library and the system's.
        seconds: of processor time for each process.
    """
    status = 1
    try:
        os.setsid()
        _keep_open(keep)
        readable = [path for path in (Path(sys.base_prefix), *packages) if path != Path("/")]
        if sys.platform == "linux":
            _call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            _write("/proc/self/oom_score_adj", "1000")
        if level == "namespaces":
            _enter_namespaces(readable)
        _limit(level, seconds)
        if sys.platform == "linux":
            _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            if level == "landlock":
                _landlock(readable)
            _filter_system_calls(alone=level != "namespaces", needed=level == "landlock")
        os.environ.clear()
        work()
        status = 0
    except MemoryError:
        status = EXIT_MEMORY
    finally:
        os._exit(status)


def _keep_open(keep: Sequence[int]) -> None:
    """Close every file but these; standard input and output are /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    last = 2
    for descriptor in sorted(keep):
        os.closerange(last + 1, descriptor)
        last = descriptor
    os.closerange(last + 1, 1024)


def _limit(level: str, seconds: int) -> None:
    limits = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),  # SIGXCPU, then SIGKILL
        resource.RLIMIT_FSIZE: (FILE_SIZE, FILE_SIZE),
        resource.RLIMIT_NOFILE: (OPEN_FILES, OPEN_FILES),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_AS: (MEMORY, MEMORY),
    }
    if level == "namespaces":  # elsewhere it would count all of the user's processes
        limits[resource.RLIMIT_NPROC] = (PROCESSES, PROCESSES)
    for kind, values in limits.items():
        try:
            resource.setrlimit(kind, values)
        except (ValueError, OSError):
            if sys.platform == "linux":  # macOS has no limit on the address space
                raise


# ---- namespaces


def _enter_namespaces(readable: Sequence[Path]) -> None:
    """Return in a process that is apart from all others; its ancestors here wait for it and end as it did."""
    user, group, is_root = os.getuid(), os.getgid(), os.geteuid() == 0
    # A user of its own, so that a limit on processes counts this sandbox's alone; also below one user namespace.
    own_user = 1_900_000_000 + os.getpid() if is_root else 65534
    _call("unshare", CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET | (0 if is_root else CLONE_NEWUSER))
    if not is_root:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{own_user} {user} 1")
        _write("/proc/self/gid_map", f"{own_user} {group} 1")
    _fork_and_wait()  # the child is the new process namespace's first: everything in it ends with it
    _call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != 0:  # seen from inside, the parent has no number, unless ...
        os._exit(1)
    _change_root(readable)
    _fork_and_wait()
    if is_root:
        os.setgroups([])
        os.setresgid(own_user, own_user, own_user)
        os.setresuid(own_user, own_user, own_user)
    _drop_capabilities()


def _fork_and_wait() -> None:
    """Return in a child; the parent ends when and as the child does."""
    child = os.fork()
    if child == 0:
        return
    os.closerange(0, 1024)
    _, status = os.waitpid(child, 0)
    os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def _change_root(readable: Sequence[Path]) -> None:
    system = [Path("/usr"), *(Path("/") / name for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"))]
    root = Path("/proc")  # any folder will do as a place to mount that holds nothing to be shown inside
    _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    _call("mount", b"none", os.fsencode(root), b"tmpfs", MS_NOSUID, FILES_IN_MEMORY.encode() + b",mode=755")
    for path in [*system, *readable]:
        if path.is_symlink() and path in system:
            (root / path.name).symlink_to(path.readlink())
        elif path.exists():
            _bind(path, root / path.relative_to("/"), MS_RDONLY | MS_NOSUID | MS_NODEV)
    for name in ("null", "zero", "random", "urandom"):
        _bind(Path("/dev", name), root / "dev" / name, 0)
    for folder in ("dev/shm", "tmp", "tmp/work"):
        (root / folder).mkdir(exist_ok=True)
        (root / folder).chmod(0o1777)
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/tmp/work")


def _bind(source: Path, target: Path, flags: int) -> None:
    if target.exists():  # below a folder that is there already
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.mkdir() if source.is_dir() else target.touch()
    _call("mount", os.fsencode(source), os.fsencode(target), None, MS_BIND | MS_REC, None)
    if flags:
        locked = os.statvfs(target).f_flag & 0xF  # what a user may not take away from another's mount
        _call("mount", None, os.fsencode(target), None, MS_BIND | MS_REMOUNT | flags | locked, None)


def _drop_capabilities() -> None:
    head, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _call("capset", head, none)
    _call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)


# ---- Landlock


def _landlock(readable: Sequence[Path]) -> None:
    """Let this process read and run what is readable, and write nothing. Source: docs.kernel.org, Landlock.

    Raises:
        OSError: the kernel has no Landlock.
    """
    version = _system_call(444, None, 0, 1)
    files = (1 << 13) - 1 | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    files |= 1 << 15 if version >= 5 else 0
    network, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)  # TCP; abstract sockets and signals
    attributes = struct.pack("QQQ", files, network, scopes)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _system_call(444, attributes, len(attributes), 0)
    execute, write_file, read_file, read_folder = 1, 1 << 1, 1 << 2, 1 << 3
    system = [Path("/") / name for name in ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")]
    allowed = dict.fromkeys((*system, *readable), execute | read_file | read_folder)
    allowed |= {Path("/dev", name): read_file for name in ("zero", "random", "urandom")}
    allowed[Path("/dev/null")] = read_file | write_file
    for path, rights in allowed.items():
        if path.exists():
            opened = os.open(path, os.O_PATH)
            rights &= -1 if path.is_dir() else ~read_folder
            _system_call(445, rules, 1, struct.pack("=Qi", rights, opened), 0)
            os.close(opened)
    _system_call(446, rules, 0)
    os.close(rules)


# ---- system calls

# By machine: its number in seccomp's data, and the calls' numbers.
CALLS = {
    "x86_64": (
        0xC000003E,
        {"pivot_root": 155, "socket": 41, "clone": 56, "fork": 57, "vfork": 58, "kill": 62, "tkill": 200}
        | {"tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "prlimit64": 302}
        | {"ptrace": 101, "mount": 165, "umount2": 166, "unshare": 272, "setns": 308, "bpf": 321, "add_key": 248}
        | {"perf_event_open": 298, "keyctl": 250, "request_key": 249, "userfaultfd": 323, "open_by_handle_at": 304}
        | {"process_vm_readv": 310, "process_vm_writev": 311, "setpriority": 141, "sched_setaffinity": 203}
        | {"chmod": 90, "fchmod": 91, "fchmodat": 268, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260}
        | {"utime": 132, "utimes": 235, "utimensat": 280, "futimesat": 261}
        | {"setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198}
        | {"fremovexattr": 199},
    ),
    "aarch64": (
        0xC00000B7,
        {"pivot_root": 41, "socket": 198, "clone": 220, "kill": 129, "tkill": 130, "tgkill": 131}
        | {"rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "prlimit64": 261}
        | {"ptrace": 117, "mount": 40, "umount2": 39, "unshare": 97, "setns": 268, "bpf": 280, "add_key": 217}
        | {"perf_event_open": 241, "keyctl": 219, "request_key": 218, "userfaultfd": 282, "open_by_handle_at": 265}
        | {"process_vm_readv": 270, "process_vm_writev": 271, "setpriority": 140, "sched_setaffinity": 122}
        | {"fchmod": 52, "fchmodat": 53, "fchown": 55, "fchownat": 54, "utimensat": 88}
        | {"setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16},
    ),
}
EVERYWHERE = {"io_uring_setup": 425, "pidfd_send_signal": 424, "clone3": 435, "pidfd_getfd": 438, "fchmodat2": 452}
# Only where other processes of the user, or files of his own, can be seen.
ALONE = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal", "prlimit64")
ALONE += ("setpriority", "sched_setaffinity", "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown")
ALONE += ("fchownat", "utime", "utimes", "utimensat", "futimesat", "setxattr", "lsetxattr", "fsetxattr")
ALONE += ("removexattr", "lremovexattr", "fremovexattr")
EPERM, EAGAIN, ENOSYS = 1, 11, 38
LOAD, JUMP_EQUAL, JUMP_GREATER, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in the filter's data


def _filter_system_calls(alone: bool, needed: bool) -> None:
    """Deny this process and its children some system calls.

    Args:
        alone: no process may be started, and no other one or file be touched.
    Raises:
        OSError: it is needed, but the machine is not one of CALLS.
    """
    architecture, calls = CALLS.get(platform.machine(), (0, {}))
    if not calls or struct.calcsize("P") != 8:
        if needed:
            raise OSError("no system-call filter for this machine")
        return
    calls = calls | EVERYWHERE
    denied = {name: EPERM for name in calls if name not in (*ALONE, "clone", "fork", "vfork", "prlimit64")}
    denied["clone3"] = ENOSYS  # its flags cannot be seen; the C library then calls clone
    program = [(LOAD, 0, 0, ARCHITECTURE), (JUMP_EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL)]
    program += [(LOAD, 0, 0, NUMBER), (JUMP_GREATER, 0, 1, 1 << 30), (RETURN, 0, 0, ERROR | ENOSYS)]  # x32's calls
    if alone:
        denied |= {name: EPERM for name in ALONE if name in calls and name != "prlimit64"}
        denied |= {name: EAGAIN for name in ("fork", "vfork") if name in calls}
        # prlimit of another process, named by its number
        program += [(JUMP_EQUAL, 0, 4, calls["prlimit64"]), (LOAD, 0, 0, FIRST_ARGUMENT), (JUMP_EQUAL, 1, 0, 0)]
        program += [(RETURN, 0, 0, ERROR | EPERM), (LOAD, 0, 0, NUMBER)]
        program += [(JUMP_EQUAL, 0, 4, calls["clone"]), (LOAD, 0, 0, FIRST_ARGUMENT), (JUMP_SET, 1, 0, CLONE_THREAD)]
        program += [(RETURN, 0, 0, ERROR | EAGAIN), (LOAD, 0, 0, NUMBER)]
    else:
        namespaces = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET
        program += [(JUMP_EQUAL, 0, 4, calls["clone"]), (LOAD, 0, 0, FIRST_ARGUMENT), (JUMP_SET, 0, 1, namespaces)]
        program += [(RETURN, 0, 0, ERROR | EPERM), (LOAD, 0, 0, NUMBER)]
    for name, error in denied.items():
        program += [(JUMP_EQUAL, 0, 1, calls[name]), (RETURN, 0, 0, ERROR | error)]
    program.append((RETURN, 0, 0, ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    _call("prctl", PR_SET_SECCOMP, 2, struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)), 0, 0)


def _call(name: str, *arguments: bytes | int | None) -> int:
    """A function of the C library, or a system call that it lacks.

    Raises:
        OSError: it failed.
    """
    if name == "pivot_root":
        return _system_call(CALLS[platform.machine()][1][name], *arguments)
    return _checked(name, getattr(_libc, name)(*map(_argument, arguments)))


def _system_call(number: int, *arguments: bytes | int | None) -> int:
    return _checked(str(number), _libc.syscall(ctypes.c_long(number), *map(_argument, arguments)))


def _argument(value: bytes | int | None):
    return ctypes.c_ulong(value) if isinstance(value, int) else value


def _checked(name: str, result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def _write(path: str, text: str) -> None:
    with Path(path).open("w") as file:
        file.write(text)
