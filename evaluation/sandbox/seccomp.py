"""The system calls that a program may make: a seccomp filter, installed from Python through prctl(2).

An allow list, so what the kernel learns later (io_uring, new ways to signal or to open) is refused too: with EPERM,
or ENOSYS for clone3, which makes the C library fall back on clone, whose flags can be looked at. Allowed is what
CPython needs to compute, to read files and to run threads. Not allowed: new processes and programs, sockets, signals
to others, anything that makes, changes or removes a file's name, limits of other processes, memory of other
processes, shared memory, keys, namespaces, mounts, priorities.

Source: Linux, include/uapi/linux/seccomp.h, filter.h, audit.h and the tables of system calls of the two machines.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import platform
import struct

_GENERIC = {  # arm64 and every later port
    "getcwd": 17, "eventfd2": 19, "epoll_create1": 20, "epoll_ctl": 21, "epoll_pwait": 22, "dup": 23, "dup3": 24,
    "fcntl": 25, "ioctl": 29, "faccessat": 48, "chdir": 49, "fchdir": 50, "openat": 56, "close": 57, "pipe2": 59,
    "getdents64": 61, "lseek": 62, "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "pwrite64": 68,
    "pselect6": 72, "ppoll": 73, "readlinkat": 78, "newfstatat": 79, "fstat": 80, "exit": 93, "exit_group": 94,
    "set_tid_address": 96, "futex": 98, "set_robust_list": 99, "nanosleep": 101, "getitimer": 102, "setitimer": 103,
    "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "sched_getscheduler": 120,
    "sched_getparam": 121, "sched_getaffinity": 123, "sched_yield": 124, "sched_get_priority_max": 125,
    "sched_get_priority_min": 126, "restart_syscall": 128, "kill": 129, "tgkill": 131, "sigaltstack": 132,
    "rt_sigsuspend": 133, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigpending": 136, "rt_sigtimedwait": 137,
    "rt_sigreturn": 139, "getpriority": 141, "getresuid": 148, "getresgid": 150, "times": 153, "getpgid": 155,
    "getsid": 156, "getgroups": 158, "uname": 160, "getrlimit": 163, "setrlimit": 164, "getrusage": 165, "umask": 166,
    "prctl": 167, "getcpu": 168, "gettimeofday": 169, "getpid": 172, "getppid": 173, "getuid": 174, "geteuid": 175,
    "getgid": 176, "getegid": 177, "gettid": 178, "sysinfo": 179, "brk": 214, "munmap": 215, "mremap": 216,
    "clone": 220, "mmap": 222, "fadvise64": 223, "mprotect": 226, "mincore": 232, "madvise": 233, "wait4": 260,
    "prlimit64": 261, "getrandom": 278, "membarrier": 283, "statx": 291, "rseq": 293, "clone3": 435,
    "close_range": 436, "faccessat2": 439,
}  # fmt: skip
_X86_64 = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "ioctl": 16,
    "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "pipe": 22, "select": 23,
    "sched_yield": 24, "mremap": 25, "mincore": 27, "madvise": 28, "dup": 32, "dup2": 33, "pause": 34,
    "nanosleep": 35, "getitimer": 36, "alarm": 37, "setitimer": 38, "getpid": 39, "clone": 56, "exit": 60,
    "wait4": 61, "kill": 62, "uname": 63, "fcntl": 72, "getdents": 78, "getcwd": 79, "chdir": 80, "fchdir": 81,
    "readlink": 89, "umask": 95, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100,
    "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "getpgrp": 111, "getgroups": 115,
    "getresuid": 118, "getresgid": 120, "getpgid": 121, "getsid": 124, "rt_sigpending": 127, "rt_sigtimedwait": 128,
    "rt_sigsuspend": 130, "sigaltstack": 131, "getpriority": 140, "sched_getparam": 143, "sched_getscheduler": 145,
    "sched_get_priority_max": 146, "sched_get_priority_min": 147, "prctl": 157, "arch_prctl": 158, "setrlimit": 160,
    "gettid": 186, "time": 201, "futex": 202, "sched_getaffinity": 204, "getdents64": 217, "set_tid_address": 218,
    "restart_syscall": 219, "fadvise64": 221, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230,
    "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "tgkill": 234, "openat": 257, "newfstatat": 262,
    "readlinkat": 267, "faccessat": 269, "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "epoll_pwait": 281,
    "eventfd2": 290, "epoll_create1": 291, "dup3": 292, "pipe2": 293, "prlimit64": 302, "getcpu": 309,
    "getrandom": 318, "membarrier": 324, "statx": 332, "rseq": 334, "clone3": 435, "close_range": 436,
    "faccessat2": 439,
}  # fmt: skip
_MACHINES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _GENERIC)}  # audit number, calls

_LOAD, _EQUAL, _ANY_BIT, _RETURN, _JUMP = 0x20, 0x15, 0x45, 0x06, 0x05  # BPF: ld abs w, jeq k, jset k, ret k, ja
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_REFUSE, _ABSENT = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; arguments are 8 bytes, low word first
_OWN = 0x5EED0FF5  # beyond any pid, and in no other instruction
_RECVMSG = {"x86_64": 47, "aarch64": 212}
_CLONE_THREAD = 0x00010000
_PR_SET_NAME, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 15, 38, 22, 2
_FCNTL = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
_IOCTL = (0x5401, 0x5450, 0x5451)  # TCGETS (isatty), FIONCLEX, FIOCLEX


def available() -> bool:
    """Whether this machine has a table here and its kernel has the filter."""
    libc = ctypes.CDLL(None)
    return platform.machine() in _MACHINES and libc.prctl(21, 0, 0, 0, 0) >= 0  # PR_GET_SECCOMP


def install(own: int, *, judge: bool = False) -> None:
    """For this process, for ever. own: its pid, the only one that it may signal. judge: may use recvmsg. OSError."""
    code = program(platform.machine(), judge=judge).replace(_OWN.to_bytes(4, "little"), own.to_bytes(4, "little"))
    buffer = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    if libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.c_char_p(head), zero, zero):
        raise OSError(ctypes.get_errno(), "seccomp")


@functools.cache
def program(machine: str, *, judge: bool = False) -> bytes:
    """The filter, 8 bytes an instruction, with _OWN where the process's own pid belongs."""
    audit, numbers = _MACHINES[machine]
    if judge:
        numbers = {**numbers, "recvmsg": _RECVMSG[machine]}
    lines = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    looked_at = {
        "clone": [(_LOAD, 0, 0, _ARGUMENTS), (_ANY_BIT, 0, 1, _CLONE_THREAD)],
        "clone3": [(_RETURN, 0, 0, _ABSENT)],
        "kill": _one_of(0, (_OWN,)),
        "tgkill": _one_of(0, (_OWN,)),
        "prlimit64": _one_of(0, (0, _OWN)),
        "fcntl": _one_of(1, _FCNTL),
        "ioctl": _one_of(1, _IOCTL),
        "prctl": _one_of(0, (_PR_SET_NAME,)),
    }
    for name, body in looked_at.items():
        whole = [*body, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
        lines += [(_EQUAL, 0, len(whole), numbers[name]), *whole]
    for name, number in numbers.items():
        if name not in looked_at:
            lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    lines.append((_RETURN, 0, 0, _REFUSE))
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _one_of(argument: int, values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Falls through to the line behind it (allow) if the argument's low word is a value, else skips that line."""
    count = len(values)
    tests = [(_EQUAL, count - 1 - at, 1 if at == count - 1 else 0, value) for at, value in enumerate(values)]
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), *tests]
