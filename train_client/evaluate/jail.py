"""How a process gives up everything but computing: resource limits and a seccomp filter that it can't undo.

The filter is a list of what is allowed. No call on it takes a path, an address or another process, and none makes a
process, a thread or a file descriptor. So it holds for root as well, and needs neither namespaces nor Landlock, which
containers and older kernels often lack. A refused call fails with EPERM, which Python turns into a `PermissionError`
that a program may catch, to no avail. The filter is built here in a few lines because Python's bindings of libseccomp
need that library from the system's packages.

Only the standard library is imported: `zygote` imports this module into a process that stays small and single-threaded.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import platform
import resource
import signal
import struct
from dataclasses import dataclass

# Call numbers on x86_64 and on aarch64, from the kernel's unistd.h; None where an architecture lacks the call.
# Not here though harmless at a glance: fcntl (can make another process receive signals), madvise (root can poison
# pages that others share), rt_sigaction and rt_sigprocmask (could ignore the signals of the limits), prlimit64.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "writev": (20, 66),
    "lseek": (8, 62),
    "close": (3, 57),
    "brk": (12, 214),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "select": (23, None),
    "pselect6": (270, 72),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "times": (100, 153),
    "getrusage": (98, 165),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "rt_sigreturn": (15, 139),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# platform.machine() → column above, the kernel's name of the architecture (linux/audit.h).
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_KILL_PROCESS, _FAIL, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # offsets in struct seccomp_data


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        cpu_seconds: CPU time; the kernel counts in whole seconds, so fractions are rounded up.
        wall_seconds: Time from start to end, in which a program that sleeps is stopped.
        memory_bytes: Address space beyond what the interpreter and the preloaded modules already take.
        output_bytes: Length of what it prints, in UTF-8.
    """

    cpu_seconds: float = 5
    wall_seconds: float = 10
    memory_bytes: int = 512 << 20
    output_bytes: int = 64 << 10


class _FilterProgram(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process as soon as its parent has ended.

    Args:
        parent: The parent's process id as it was known before this process started.

    Raises:
        OSError: prctl is refused, or the parent has ended already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise OSError(errno.ESRCH, f"parent process {parent} has ended")


def address_space() -> int:
    """Bytes of address space this process has now."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def lock_down(limits: Limits, *, own_bytes: int) -> None:
    """Bind this process to the limits and to the allowed calls, for good.

    The process must have one thread, since a filter binds the thread that installs it.

    Args:
        limits: What the process may use from here on.
        own_bytes: Address space that comes on top of `limits.memory_bytes`.

    Raises:
        OSError: the kernel refuses. After this or any other exception nothing must be run.
    """
    # Python ignores SIGXFSZ; its default action is what ends a program that prints too much.
    for number in (signal.SIGXFSZ, signal.SIGXCPU, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    cpu = math.ceil(limits.cpu_seconds)
    memory = own_bytes + limits.memory_bytes
    for which, soft, hard in (
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, limits.output_bytes, limits.output_bytes),
        (resource.RLIMIT_CORE, 0, 0),
        # The filter refuses what these would count. They would still bind if it had a hole.
        (resource.RLIMIT_NOFILE, 0, 0),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
    ):
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:  # what this process was started under, which only root could raise
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    instructions = _filter(platform.machine())
    program = _FilterProgram(len(instructions) // 8, instructions)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))


def _filter(machine: str) -> bytes:
    """The allowed calls as a BPF program: an array of `struct sock_filter`, 8 bytes each."""
    column, architecture = MACHINES[machine]
    numbers = [call[column] for call in _ALLOWED.values()]
    # A call made as another architecture (int 0x80 on x86_64) has other numbers: the process ends.
    program = [
        (_LOAD_WORD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD_WORD, 0, 0, _NUMBER_AT),
    ]
    for number in numbers:
        if number is not None:
            program += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    program.append((_RETURN, 0, 0, _FAIL | errno.EPERM))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _prctl(option: int, value: int, pointer: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [ctypes.c_ulong(number) for number in (value, pointer, 0, 0)]
    if libc.prctl(ctypes.c_int(option), *arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")
