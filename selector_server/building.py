"""A store is there or it is not: built in a hidden folder beside its target, and renamed when it is whole.

`prepare` works inside `build_beside` and ends with `publish`. Errors, Ctrl-C, SIGTERM and a full disk remove the hidden
folder; one that a kill -9 left is told by its lock, which nobody holds, and removed by the next prepare.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from shared.dataset import MANIFEST_FILE, ROWS_FILE
from shared.errors import DataError
from shared.store_writer import sync_folder

STORE = "store"
_SUFFIX = ".building"
_LOCK = "lock"
_REPLACED = "replaced"
_logger = logging.getLogger(__name__)


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a target that a store can't take the place of.

    Raises:
        DataError: `out` is a file, or holds anything; with `overwrite`, anything but a store.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out} is a file: give a new or empty folder for the store")
    found = {entry.name for entry in out.iterdir()}
    if found and not overwrite:
        raise DataError(
            f"{out} is not empty, it holds {min(found)}: give a new folder, or pass --overwrite to replace a store"
        )
    if foreign := found - {ROWS_FILE, MANIFEST_FILE}:
        raise DataError(
            f"{out} is not just a store, it holds {min(foreign)}: give a new folder, --overwrite replaces stores only"
        )


def remove_leftovers(out: Path) -> None:
    """Remove what a prepare for `out` left beside it when it was killed with -9.

    If that was while one store took the place of another, the old one gets its name back: there is no other copy.
    """
    for folder in out.parent.glob(f".{glob.escape(out.name)}.*{_SUFFIX}"):
        if Path(folder.stem).stem != f".{out.name}":  # that of a target with a longer name
            continue
        with suppress(OSError), (folder / _LOCK).open("r+b") as lock:  # held by a living prepare, or not ours to open
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (folder / STORE).exists() and (folder / _REPLACED).exists():
                os.rename(folder / _REPLACED, out)
                sync_folder(out.parent)
                _logger.warning("%s has its old store again: the prepare that was replacing it was killed", out)
            _remove(folder)


@contextmanager
def build_beside(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` to build in, removed however this ends; after kill -9, by the next prepare.

    Raises:
        DataError: `out` can't be written, or there is no room.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_SUFFIX, dir=out.parent))
    except OSError as error:
        raise DataError(f"a store can't be made at {out}: {error}; choose a folder that can be written") from error
    try:
        with _sigterm_unwinds(), _held(building):
            yield building
    except Exception as error:
        for cause in _causes(error):
            # An interrupted pool of processes raises a TimeoutError over the interrupt.
            if isinstance(cause, KeyboardInterrupt | SystemExit):
                raise cause from None
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
                free = shutil.disk_usage(building).free // 2**20
                raise DataError(
                    f"no room for a store at {out}, {free} MiB are left there: preparing takes about twice "
                    "the size of the store, so make room or choose another disk"
                ) from error
        if isinstance(error, OSError):
            raise DataError(f"a store can't be made at {out}: {error}; nothing was written") from error
        raise
    finally:
        _remove(building)


def publish(store: Path, out: Path, *, overwrite: bool) -> None:
    """Give a whole store, built in the folder of `build_beside`, its name.

    Raises:
        DataError: `out` was taken meanwhile.
    """
    check_target(out, overwrite=overwrite)
    replaced = store.with_name(_REPLACED)
    if overwrite and out.exists():
        os.rename(out, replaced)
    try:
        os.rename(store, out)
    except BaseException:
        if replaced.exists():
            os.rename(replaced, out)
        raise
    sync_folder(out.parent)


@contextmanager
def _held(building: Path) -> Iterator[None]:
    """Hold a lock that is gone when this process and its workers are, so that the folder can be known as left behind.

    The lock gets its name once it is held: a folder without one is never taken for a leftover.
    """
    unnamed = building / f"{_LOCK}.new"
    with unnamed.open("xb") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(building / _LOCK)
        yield


def _remove(building: Path) -> None:
    """Remove a folder, its lock last: if this is killed too, the next prepare goes on."""
    for entry in building.glob("*"):
        if entry.name != _LOCK:
            shutil.rmtree(entry, ignore_errors=True)
    shutil.rmtree(building, ignore_errors=True)


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM end the process the way Ctrl-C does, so that what is half built is removed."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
