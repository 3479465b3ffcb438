"""Looks at the machine: its clock, and what files need of its disks."""

from __future__ import annotations

import ctypes
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from shared.doctor.finding import Finding

# Of glibc's ntp_adjtime: the kernel's clock follows no other.
_UNSYNCHRONISED = 5
_TIMEX_BYTES = 512
# Certificates of `selector-server certs` are good from five minutes before they are made.
_SKEW_WARNING_S, _SKEW_PROBLEM_S = 2.0, 240.0
_NTP = "let chrony or systemd-timesyncd set it"


def own_clock() -> Iterable[Finding]:
    """Whether something keeps this machine's clock right, where the system says."""
    if not sys.platform.startswith("linux"):
        return
    state = ctypes.CDLL(None).ntp_adjtime(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state == _UNSYNCHRONISED:
        yield Finding("clock", "warning", "nothing keeps this machine's clock right", _NTP)
    elif state >= 0:
        yield Finding("clock", "ok", "it is kept right")


def clock_skew(theirs_s: float, *, asked_s: float, answered_s: float) -> Finding:
    """Compare a server's clock with ours.

    Args:
        theirs_s: The server's time in its answer, Unix seconds.
        asked_s: Ours when we asked.
        answered_s: Ours when the answer was there; the true difference is within half of the time between.
    """
    skew = theirs_s - (asked_s + answered_s) / 2
    sure = max(0.0, abs(skew) - (answered_s - asked_s) / 2)
    what = f"the server's is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    if sure >= _SKEW_PROBLEM_S:
        return Finding("clock", "problem", f"{what}: certificates and timelines are off by that", _NTP + " on both")
    if sure >= _SKEW_WARNING_S:
        return Finding("clock", "warning", f"{what}: timelines of steps are off by that", _NTP + " on both")
    return Finding("clock", "ok", f"within {abs(skew) + (answered_s - asked_s) / 2:.2f} s of the server's")


def room(folder: Path, needed: int, *, setting: str, why: str) -> Iterable[Finding]:
    """Whether a folder, there already or yet to be made, can be written and has room.

    Args:
        folder: The folder.
        needed: Bytes that will be written.
        setting: The key that names it.
        why: What makes up the bytes.
    """
    where = folder.absolute()
    while not where.exists():
        where = where.parent
    try:
        with tempfile.TemporaryFile(dir=where) as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        what = f"{setting} {folder} can't be written: {error.strerror}"
        yield Finding("disk", "problem", what, f"make it a folder that this user may write to, or change {setting}")
        return
    free = shutil.disk_usage(where).free
    what = f"{setting} {folder} has {_size(free)} free, {why} take about {_size(needed)}"
    if needed > free:
        yield Finding("disk", "problem", what, "make room, or choose another disk")
    elif needed > free / 2:
        yield Finding("disk", "warning", what, "it may fill up, if others write there too")
    else:
        yield Finding("disk", "ok", what)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MiB"
