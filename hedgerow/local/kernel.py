"""The few Linux calls that Python has no function for, with errors that say what was tried."""

from __future__ import annotations

import ctypes
import os
import signal

_libc = ctypes.CDLL(None, use_errno=True)

# <sys/mount.h>
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Call mount(2).

    :raises OSError: with the target as its file name
    """
    result = _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {kind or source}: {os.strerror(number)}", target)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends (PR_SET_PDEATHSIG of prctl(2)).

    The setting is lost when the process changes its user or gains capabilities: call it again afterwards. It says
    nothing of a parent that is gone already: the caller has to check that.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")


def set_host_name(name: str) -> None:
    """Name this UTS namespace (sethostname(2))."""
    encoded = name.encode()
    if _libc.sethostname(encoded, len(encoded)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"sethostname: {os.strerror(number)}")
