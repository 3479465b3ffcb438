"""One thing ahead: the next of a series is made in the background while the one taken last is still in use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Makes the things of a series in order in a thread; not more than one exists that hasn't been taken."""

    def __init__(self, make: Callable[[int], T], numbers: Iterable[int], *, name: str) -> None:
        """Start the thread, and with it the first thing.

        Args:
            make: Makes one of them; may block until another thread lets it go on, and must end after `stop`.
            numbers: What to call it with.
            name: The thread's.
        """
        self._made: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        self._room = threading.Semaphore(1)
        self._stopping = threading.Event()
        # A daemon: a loop that was left by an error may not keep its process alive.
        self._thread = threading.Thread(target=self._work, args=(make, numbers), name=name, daemon=True)
        self._thread.start()

    def take(self) -> T:
        """The next one; waits until it is made.

        Raises:
            BaseException: what making it raised, which ends the series.
        """
        made, error = self._made.get()
        if error is not None:
            self._made.put((None, error))  # whoever asks again hears the same
            raise error
        self._room.release()
        return made  # type: ignore[return-value]

    def stop(self) -> None:
        """Make no more; doesn't wait for the one that is being made."""
        self._stopping.set()
        self._room.release()

    def join(self) -> None:
        """Return when the thread has ended, after `stop`."""
        self._thread.join()

    def _work(self, make: Callable[[int], T], numbers: Iterable[int]) -> None:
        for number in numbers:
            self._room.acquire()
            if self._stopping.is_set():
                return
            try:
                made = make(number)
            except BaseException as error:  # the thread that takes it must hear of it instead of waiting
                self._made.put((None, error))
                return
            self._made.put((made, None))
