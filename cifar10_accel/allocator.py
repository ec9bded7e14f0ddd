"""Makes the C library keep freed memory, where it would hand large blocks back to the kernel at once."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """From now on this process reuses the memory it frees; nothing happens where the C library is not glibc.

    Every update on a CPU allocates and frees the same activations. As mappings of their own, which is how glibc
    serves what is large, they come back from the kernel page by page and cleared; BENCHMARKS.md has what that costs.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
