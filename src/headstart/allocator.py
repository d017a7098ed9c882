"""Keep freed memory in the process, so that large tensors are not paged in anew every time.

glibc maps every allocation above a threshold separately and gives it back to the kernel when it is freed; the
next one of the same size then costs a page fault per 4 KiB. In meta-learning, where each step allocates and
frees the same large tensors, that was 40 % of the time of an eager update on images of 84 x 84.
"""

import ctypes
import gc
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""From glibc's `malloc.h`."""


def keep_memory() -> bool:
    """Tell glibc to keep what is freed; returns whether it did, which is False wherever there is no glibc.

    The process then holds its peak until it ends, or until `give_back`. The command line calls this as it starts; a
    library must not decide it for the program it is used in, so in your own program call it yourself.
    """
    mallopt = _glibc("mallopt")
    if mallopt is None:
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 256 * 2**20}
    return all(accepted == 1 for accepted in [mallopt(name, value) for name, value in settings.items()])


def give_back() -> None:
    """Give what is freed by now back to the system, where there is glibc; `keep_memory` holds for what comes after.

    For after something that took more memory than what follows, such as trying out how many tasks to compute at once.
    """
    gc.collect()
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Any:
    """A function of the C library, None where it is another: musl has neither of the two."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
