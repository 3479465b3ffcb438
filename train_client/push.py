"""Weights on their way to the server: a snapshot on the training thread, everything else in the background.

A snapshot is kept until the server has it on disk, then its memory serves the next. Two are under way at most, unless
training goes on without the server; one more waits, and says so, since a version that is skipped would leave a later
step without its weights.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from shared.errors import SubbatchError
from train_client.snapshot import Snapshot

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

MAX_UNDER_WAY = 2


class Pusher:
    """Uploads snapshots in order, in one background thread."""

    def __init__(
        self,
        upload: Callable[[int, memoryview, memoryview | None], None],
        *,
        run: str,
        max_under_way: int = MAX_UNDER_WAY,
        keeps_last: bool = False,
        dtype: str | None = None,
        on_failed: Callable[[SubbatchError], None] = lambda error: None,
    ) -> None:
        """Start the thread.

        Args:
            upload: Sends one version's payload and returns when it is durable; it is given the payload before as well,
                where that is kept.
            run: The run's name, for logs.
            max_under_way: Snapshots that aren't durable before the next push waits.
            keeps_last: Whether the last payload that is durable is kept, at the cost of memory for one more snapshot.
            dtype: What tensors are cast to; their own where None.
            on_failed: Called, in the background, with what ended an upload, after which there are no more.
        """
        self._upload, self._run, self._max_under_way = upload, run, max_under_way
        self._on_failed, self._keeps_last, self._dtype = on_failed, keeps_last, dtype
        self._last: Snapshot | None = None
        self._changed = threading.Condition()
        self._under_way: list[tuple[int, Snapshot]] = []
        self._free: list[Snapshot] = []
        self._newest: Snapshot | None = None
        self._error: SubbatchError | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="subbatch-push", daemon=True)
        self._thread.start()

    def push(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Snapshot the tensors now and upload them later; they may not change before `before_overwriting`.

        Raises:
            SubbatchError: an earlier upload was refused, or the server stayed away.
            WeightsError: tensors that can't be sent, or others than before.
        """
        with self._changed:
            if len(self._under_way) >= self._max_under_way and not self._error:
                began = time.monotonic()
                waits_for = self._under_way[0][0]
                logger.warning("run %s: weights version %d waits for version %d", self._run, version, waits_for)
                self._changed.wait_for(
                    lambda: len(self._under_way) < self._max_under_way or self._error or self._stopping
                )
                logger.warning("run %s: waited %.1f s for a push", self._run, time.monotonic() - began)
            self._raise_error()
            snapshot = self._free.pop() if self._free else None
        snapshot = snapshot or Snapshot(tensors, dtype=self._dtype)
        snapshot.take(tensors)
        with self._changed:
            self._newest = snapshot
            self._under_way.append((version, snapshot))
            self._changed.notify_all()

    def before_overwriting(self) -> None:
        """The tensors are about to change: a GPU that is still copying them finishes first. Doesn't wait itself."""
        if self._newest:
            self._newest.before_overwriting()

    def wait_durable(self, gives_up: Callable[[], bool] = lambda: False) -> bool:
        """Return when everything pushed so far is durable on the server: True; or False where the caller gives up.

        Args:
            gives_up: Asked twice a second.

        Raises:
            SubbatchError: an upload was refused, or the server stayed away.
        """
        while True:
            with self._changed:
                is_over = self._changed.wait_for(lambda: not self._under_way or self._error or self._stopping, 0.5)
                self._raise_error()
                if is_over:
                    return not self._under_way
            if gives_up():
                return False

    @property
    def not_durable(self) -> list[int]:
        """Versions that were pushed and that the server hasn't confirmed, oldest first."""
        with self._changed:
            return [version for version, _ in self._under_way]

    def keep_newest(self) -> None:
        """Give up what hasn't been sent but the newest, and the upload at hand, whose memory is in use."""
        with self._changed:
            self._free += [snapshot for _, snapshot in self._under_way[1:-1]]
            del self._under_way[1:-1]
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the thread after the upload at hand; what hasn't been sent is dropped."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def join(self) -> None:
        """Return when the thread has ended, after `close` and the end of the upload at hand."""
        self._thread.join()

    def _raise_error(self) -> None:
        if self._error:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._under_way or self._stopping)
                if self._stopping:
                    return
                version, snapshot = self._under_way[0]
            try:
                self._upload(version, snapshot.payload(), self._last.payload() if self._last else None)
            except Exception as error:  # whatever it is, the training thread must hear of it instead of waiting
                if not isinstance(error, SubbatchError):
                    error = SubbatchError(f"run {self._run!r}: pushing weights version {version} failed: {error!r}")
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                self._on_failed(error)
                return
            with self._changed:
                del self._under_way[0]
                if self._keeps_last:
                    self._last, snapshot = snapshot, self._last
                self._free += [snapshot] if snapshot else []
                self._changed.notify_all()
