"""How much of a process is in memory, which of it can leave, and how old it is: Linux's own numbers."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress
from pathlib import Path

_DONTNEED = 4  # MADV_DONTNEED
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h
_LARGE = 8 * 2**20


def peak_rss() -> int:
    """Peak of this process's resident memory, in bytes.

    Of Linux's two numbers the one that begins anew with a program: `ru_maxrss` of a worker process begins with
    the size of the process that started it.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rss() -> int:
    """This process's resident memory, in bytes; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def age() -> float:
    """Seconds since this process began, to a hundredth; 0 where the system does not tell."""
    try:
        # The name of the program, in parentheses, may itself hold spaces and parentheses.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, IndexError, ValueError, AttributeError):
        return 0.0


def shrink(limit: int) -> None:
    """Let go of what comes back by itself, where this process has more than `limit` bytes in memory.

    That is the code of libraries (the compiler's alone is 70 MB, and is done when the kernels are loaded) and mapped
    blocks: pages that are read from their files again when they are next touched. And what the allocator keeps.
    Pages that may have been written to stay, relocated tables among them.
    """
    if rss() <= limit:
        return
    with suppress(OSError, AttributeError):  # another system: Dask's own means have to do
        libc = ctypes.CDLL(None)
        for line in Path("/proc/self/maps").read_text().splitlines():
            place, rights, _, _, inode, *_ = line.split(maxsplit=5)
            if inode != "0" and rights in ("r-xp", "r--s"):
                low, high = (int(end, 16) for end in place.split("-"))
                libc.madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), _DONTNEED)
        if rss() > limit:
            libc.malloc_trim(ctypes.c_size_t(0))


def return_large() -> None:
    """Have what this process frees go back to the system at once, where it is 8 MiB or more, and less be used again.

    glibc begins with less, and keeps up to 32 MiB each once something as large was freed: between the arrays of a
    pass holes stay that none of the next one fits. Dask's nannies have it return all that is free above 64 KiB, which
    the next batch of a file asks for again, a page at a time: a quarter of what reading and counting take.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, _LARGE)
        libc.mallopt(_MMAP_THRESHOLD, _LARGE)
