"""The system calls that confined code may make on Linux. Every other call fails, including those of later kernels.

Left out on purpose: calls that start a process or a program, sockets except a connected pair, calls that reach another
process or a file's attributes, memory that no limit counts (System V, memfd), and mounts.
"""

import ctypes
import os
import platform
import struct

# name=number on x86-64/number on ARM64; empty if the machine does not have the call.
ALLOWED = """
read=0/63 write=1/64 readv=19/65 writev=20/66 pread64=17/67 pwrite64=18/68 preadv=295/69 pwritev=296/70
preadv2=327/286 pwritev2=328/287 open=2/ openat=257/56 close=3/57 close_range=436/436 lseek=8/62 stat=4/ fstat=5/80
lstat=6/ newfstatat=262/79 statx=332/291 access=21/ faccessat=269/48 faccessat2=439/439 readlink=89/ readlinkat=267/78
getdents=78/ getdents64=217/61 getcwd=79/17 chdir=80/49 fchdir=81/50 statfs=137/43 fstatfs=138/44 dup=32/23 dup2=33/
dup3=292/24 fsync=74/82 fdatasync=75/83 fadvise64=221/223 flock=73/32 ftruncate=77/46 sendfile=40/71
copy_file_range=326/285 mkdir=83/ mkdirat=258/34 rmdir=84/ unlink=87/ unlinkat=263/35 rename=82/ renameat=264/38
renameat2=316/276 link=86/ linkat=265/37 symlink=88/ symlinkat=266/36 umask=95/166 pipe=22/ pipe2=293/59 poll=7/
ppoll=271/73 select=23/ pselect6=270/72 epoll_create=213/ epoll_create1=291/20 epoll_ctl=233/21 epoll_wait=232/
epoll_pwait=281/22 epoll_pwait2=441/441 eventfd=284/ eventfd2=290/19 timerfd_create=283/85 timerfd_settime=286/86
timerfd_gettime=287/87 sendto=44/206 recvfrom=45/207 sendmsg=46/211 recvmsg=47/212 shutdown=48/210 getsockname=51/204
getpeername=52/205 getsockopt=55/209 setsockopt=54/208 mmap=9/222 munmap=11/215 mremap=25/216 mprotect=10/226
madvise=28/233 brk=12/214 mincore=27/232 msync=26/227 membarrier=324/283 exit=60/93 exit_group=231/94 getpid=39/172
gettid=186/178 getppid=110/173 getuid=102/174 geteuid=107/175 getgid=104/176 getegid=108/177 getresuid=118/148
getresgid=120/150 getgroups=115/158 getpgrp=111/ getpgid=121/155 getsid=124/156 getrlimit=97/163 capget=125/90
getrusage=98/165 sysinfo=99/179 uname=63/160 times=100/153 getcpu=309/168 sched_yield=24/124 sched_getaffinity=204/123
sched_get_priority_max=146/125 sched_get_priority_min=147/126 set_tid_address=218/96 set_robust_list=273/99
rseq=334/293 futex=202/98 arch_prctl=158/ wait4=61/260 waitid=247/95 rt_sigaction=13/134 rt_sigprocmask=14/135
rt_sigreturn=15/139 rt_sigpending=127/136 rt_sigsuspend=130/133 rt_sigtimedwait=128/137 sigaltstack=131/132 pause=34/
alarm=37/ getitimer=36/102 setitimer=38/103 nanosleep=35/101 clock_nanosleep=230/115 clock_gettime=228/113
clock_getres=229/114 gettimeofday=96/169 time=201/ restart_syscall=219/128 getrandom=318/278
"""
OWN_FILES = """
creat=85/ truncate=76/45 chmod=90/ fchmod=91/52 fchmodat=268/53 utime=132/ utimes=235/ futimesat=261/ utimensat=280/88
"""
CHECKED = """
clone=56/220 fcntl=72/25 ioctl=16/29 kill=62/129 tgkill=234/131 prctl=157/167 prlimit64=302/261 socketpair=53/199
"""
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # number in seccomp's data, column of the tables

EPERM, ENOSYS = 1, 38
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in seccomp's data; both machines are little-endian
NEWER = 424  # calls from here on have one number on all machines; programs have an alternative if they get ENOSYS
X32 = 1 << 30
O_TRUNC = 0o1000
PR_SET_SECCOMP = 22


def filter_system_calls(own_files: bool, truncate: bool) -> None:
    """Let this process make only the calls of the tables. PR_SET_NO_NEW_PRIVS must be set before.

    Args:
        own_files: it may change files' attributes, because it can reach only its own files.
        truncate: opening a file may empty it. Before Linux 6.2, Landlock cannot prevent that, so the filter must.
    Raises:
        OSError: there is no table for this machine, or the kernel refuses the filter.
    """
    if platform.machine() not in MACHINES or struct.calcsize("P") != 8:
        raise OSError(f"no list of system calls for {platform.machine()}")
    architecture, column = MACHINES[platform.machine()]
    program = [(LOAD, 0, 0, ARCHITECTURE), (JUMP_EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL)]
    program += [(LOAD, 0, 0, NUMBER), (JUMP_AT_LEAST, 0, 1, X32), (RETURN, 0, 0, ERROR | ENOSYS)]
    for name, argument in (("open", 1), ("openat", 2)) if not truncate else ():
        if number := _numbers(ALLOWED, column).get(name):
            program += [(JUMP_EQUAL, 0, 4, number), (LOAD, 0, 0, FIRST_ARGUMENT + 8 * argument)]
            program += [(JUMP_SET, 0, 1, O_TRUNC), (RETURN, 0, 0, ERROR | EPERM), (LOAD, 0, 0, NUMBER)]
    for number in _numbers(ALLOWED + OWN_FILES * own_files, column).values():
        program += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    for name, number in _numbers(CHECKED, column).items():
        argument, values = _checked_arguments()[name]
        program += [(JUMP_EQUAL, 0, 2 + 2 * len(values), number), (LOAD, 0, 0, FIRST_ARGUMENT + 8 * argument)]
        program += [line for value in values for line in ((JUMP_EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW))]
        program += [(RETURN, 0, 0, ERROR | EPERM)]
    program += [(JUMP_AT_LEAST, 0, 1, NEWER), (RETURN, 0, 0, ERROR | ENOSYS), (RETURN, 0, 0, ERROR | EPERM)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), head, ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise OSError(ctypes.get_errno(), "seccomp: " + os.strerror(ctypes.get_errno()))


def _numbers(table: str, column: int) -> dict[str, int]:
    pairs = (entry.split("=") for entry in table.split())
    return {name: int(number) for name, numbers in pairs if (number := numbers.split("/")[column])}


def _checked_arguments() -> dict[str, tuple[int, tuple[int, ...]]]:
    """Checked call -> the number of an argument, counted from 0, and the values that are allowed for it."""
    own = os.getpid()
    return {
        "clone": (0, (0x3D0F00, 0x7D0F00)),  # the flags with which glibc and musl start a thread
        "fcntl": (1, (*range(8), 36, 37, 38, 1030, 1031, 1032)),  # no signals (F_SETOWN, F_SETSIG), leases, seals
        "ioctl": (1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),  # is it a terminal, its size, bytes, flags
        "kill": (0, (own,)),
        "tgkill": (0, (own,)),
        "prctl": (0, (15, 16)),  # a thread's name
        "prlimit64": (0, (0, own)),
        "socketpair": (1, (1, 1 | 0o4000, 1 | 0o2000000, 1 | 0o2004000)),  # streams, which reach only each other
    }
