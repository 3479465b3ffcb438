"""The kinds of faults: what each does to the rig, and whether the job may die of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos import fault_points
from tests.chaos.rig import Rig, SoakError
from tests.chaos.schedule import Fault
from tests.processes import send

_DELAY_S = 0.15
_FILLER = "filler"


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        strike: Makes one, and returns when what it did is over; what it killed is started again by the rig.
        kills_job: Whether the job's processes are killed, or may end with an error, and go on from a checkpoint.
        needs_disk: Whether the journal needs a disk of its own.
    """

    strike: Callable[[Rig, Fault], None]
    kills_job: bool = False
    needs_disk: bool = False


def _server_killed(rig: Rig, fault: Fault) -> None:
    rig.server.kill()
    time.sleep(fault.seconds)
    rig.server.start()


def _server_killed_in_mid_write(rig: Rig, fault: Fault) -> None:
    """One of the next records, or weights, is left half-written."""
    starts = rig.server.starts
    fault_points.plan_to_die(rig.server.plan, at=1 + fault.number % 3, only=fault_points.HALF)
    rig.wait_for("the server to die in mid-write and be there again", lambda: rig.server.starts > starts)


def _server_restarted(rig: Rig, fault: Fault) -> None:
    rig.server.stop()
    time.sleep(fault.seconds)
    rig.server.start()


def _server_stopped(rig: Rig, fault: Fault) -> None:
    with rig.paused([rig.server.process.pid]):
        time.sleep(2 * fault.seconds)


def _rank_0_killed(rig: Rig, fault: Fault) -> None:
    send(_processes(rig, 0), signal.SIGKILL)


def _other_rank_killed(rig: Rig, fault: Fault) -> None:
    send(_processes(rig, max(1, fault.rank)), signal.SIGKILL)


def _rank_stopped(rig: Rig, fault: Fault) -> None:
    with rig.paused(_processes(rig, fault.rank)):
        time.sleep(2 * fault.seconds)


def _job_killed(rig: Rig, fault: Fault) -> None:
    send(rig.job.now.pids(), signal.SIGKILL)


def _everything_killed(rig: Rig, fault: Fault) -> None:
    rig.server.kill()
    send(rig.job.now.pids(), signal.SIGKILL)


def _connections_cut(rig: Rig, fault: Fault) -> None:
    rig.network.cut()


def _partition(rig: Rig, fault: Fault) -> None:
    rig.network.silence()
    time.sleep(2 * fault.seconds)
    rig.network.heal()


def _half_partition(rig: Rig, fault: Fault) -> None:
    rig.network.silence(("up",) if fault.rank else ("down",))
    time.sleep(2 * fault.seconds)
    rig.network.heal()


def _network_slow(rig: Rig, fault: Fault) -> None:
    rig.network.slow(_DELAY_S)
    time.sleep(2 * fault.seconds)
    rig.network.heal()


def _bytes_corrupted(rig: Rig, fault: Fault) -> None:
    rig.network.corrupt(1 + fault.number % 3)
    rig.wait_for("bytes to corrupt", lambda: not rig.network.is_corrupting)


def _disk_full(rig: Rig, fault: Fault) -> None:
    assert rig.disk is not None
    filler = rig.disk / _FILLER
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    rig.wait_for("what the full disk does", _after(fault.seconds))
    os.unlink(filler)


def _zombie(rig: Rig, fault: Fault) -> None:
    """The whole job stands still, is taken for dead and replaced; then it comes back, and must be turned away."""
    rig.wait_for("the job to have opened the run", lambda: rig.job.now.completed() > rig.job.now.first_step)
    zombie = rig.job.now
    pids = zombie.pids()
    with rig.paused(pids):
        rig.job.start()
        rig.wait_for_progress()
    # The run has only so many steps: those that the new job would train meanwhile are left to other faults.
    with rig.paused(rig.job.now.pids()):
        rig.wait_for("the zombie to be turned away", lambda: zombie.process.poll() is not None)
    if zombie.process.returncode == 0:
        raise SoakError(f"attempt {zombie.number} trained to its end though a newer one had opened the run")


def _processes(rig: Rig, rank: int) -> list[int]:
    """Those of a rank, once torchrun has started it."""
    rig.wait_for(f"rank {rank} to be there", lambda: rig.job.now.rank(rank))
    return rig.job.now.rank(rank)


def _after(seconds: float) -> Callable[[], bool]:
    at = time.monotonic() + seconds
    return lambda: time.monotonic() > at


KINDS = {
    "server killed": Kind(_server_killed),
    "server killed in mid-write": Kind(_server_killed_in_mid_write),
    "server restarted": Kind(_server_restarted),
    "server stopped": Kind(_server_stopped),
    "rank 0 killed": Kind(_rank_0_killed, kills_job=True),
    "other rank killed": Kind(_other_rank_killed, kills_job=True),
    "rank stopped": Kind(_rank_stopped),
    "job killed": Kind(_job_killed, kills_job=True),
    "everything killed": Kind(_everything_killed, kills_job=True),
    "connections cut": Kind(_connections_cut),
    "partition": Kind(_partition),
    "half partition": Kind(_half_partition),
    "network slow": Kind(_network_slow),
    "bytes corrupted": Kind(_bytes_corrupted),
    "disk full": Kind(_disk_full, needs_disk=True),
    "zombie": Kind(_zombie, kills_job=True),
}
