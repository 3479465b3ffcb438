"""The scoring processes as a team: rank 0 says what to do, all do their part, and rank 0 gets everybody's answer.

Commands come from rank 0's one selecting thread, so all processes see the same ones in the same order. Nothing here has
a time limit, since an idle server may wait for days: it is the pulse that notices who is lost, and ends the process.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from selector_server.scale_out.place import Place
from selector_server.scale_out.pulse import Peer, Pulse
from selector_server.scale_out.wires import FloatArray, Wires
from shared.errors import ConfigError, SelectionError

T = TypeVar("T")

_START_TIMEOUT = timedelta(minutes=5)
_NO_TIMEOUT = timedelta(days=365)
_HELLO_BYTES = 256


@dataclass(frozen=True, eq=False)
class Answer:
    """How one process did its part.

    Attributes:
        error: What went wrong; empty where nothing did.
        values: What it has to say, as JSON.
        arrays: What it found, float64, by name.
    """

    error: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, FloatArray] = field(default_factory=dict)


class Team:
    """Rank 0's end."""

    def __init__(self, place: Place, names: Mapping[int, str], wires: Wires, pulse: Pulse) -> None:
        """Take what `join` made; `names` are the other ranks' in errors."""
        self.size = place.size
        self._names, self._wires, self._pulse = names, wires, pulse

    def call(
        self, command: Mapping[str, Any], mine: Callable[[], T], *, tensors: Sequence[torch.Tensor] = ()
    ) -> tuple[T, list[Answer]]:
        """Tell every process what to do, do rank 0's part meanwhile, and wait for all.

        Args:
            command: What `worker` understands.
            mine: Rank 0's part.
            tensors: On the CPU; what the command says will follow it.

        Returns:
            What `mine` returned, and the answers of the ranks from 1 on.

        Raises:
            SelectionError: a process couldn't do its part.
            Exception: what `mine` raised, which comes first. All are ready for the next command in either case.
        """
        with _settled_by(self._pulse):
            self._wires.say(command)
            for tensor in tensors:
                self._wires.share(tensor.contiguous())
        try:
            result = mine()
        finally:  # also where it failed, so that nobody still answers this command when the next one comes
            with _settled_by(self._pulse):
                answers = [self._answer(rank) for rank in self._names]
        for name, answer in zip(self._names.values(), answers, strict=True):
            if answer.error:
                raise SelectionError(f"{name} couldn't {command['do']}: {answer.error}")
        return result, answers

    def name(self, rank: int) -> str:
        """What an error calls a rank from 1 on."""
        return self._names[rank]

    def close(self) -> None:
        """Let every process end."""
        self.call({"do": "stop"}, lambda: None)
        self._pulse.stop()

    def _answer(self, rank: int) -> Answer:
        told, arrays = self._wires.collect(rank)
        return Answer(told["error"], told["values"], arrays)


class Member:
    """The end of every other rank."""

    def __init__(self, place: Place, wires: Wires, pulse: Pulse) -> None:
        """Take what `join` made."""
        self.rank, self.size = place.rank, place.size
        self._wires, self._pulse = wires, pulse

    def receive(self) -> dict[str, Any]:
        """The next command."""
        with _settled_by(self._pulse):
            return self._wires.listen()

    def receive_tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor that the command announced."""
        tensor = torch.empty(tuple(shape), dtype=dtype)
        with _settled_by(self._pulse):
            self._wires.share(tensor)
        self._pulse.advance()
        return tensor

    @contextmanager
    def working(self) -> Iterator[None]:
        """While a command is carried out, getting no further with it is hanging."""
        with self._pulse.working():
            yield

    def advance(self) -> None:
        """A part of the command is done."""
        self._pulse.advance()

    def answer(self, answer: Answer) -> None:
        """Tell rank 0 how it went."""
        with _settled_by(self._pulse):
            self._wires.report({"error": answer.error, "values": answer.values}, answer.arrays)

    def close(self) -> None:
        """Answer the last command, and wait until rank 0 has ended, too."""
        self._pulse.let_peers_go()
        self.answer(Answer())
        self._pulse.outlast_peers()


def join(place: Place, *, timeout_s: float) -> Team | Member:
    """Meet the other scoring processes; from here on, each ends when another is lost.

    Args:
        place: One of several.
        timeout_s: How long a process may be silent, or at work without getting further.

    Raises:
        ConfigError: they can't meet.
    """
    # On one machine nobody else has to be able to connect.
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    try:
        dist.init_process_group("gloo", timeout=_START_TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"scoring process {place.rank} of {place.size} can't meet the others: {error}: start them all with one "
            "torchrun or accelerate launch"
        ) from None
    wires = Wires(dist.new_group(timeout=_NO_TIMEOUT))
    me = {"rank": place.rank, "pid": os.getpid()}
    if place.rank > 0:
        rank_0 = wires.listen()
        connection = Client(rank_0["address"], family="AF_UNIX")
        connection.send_bytes(json.dumps(me).encode())
        pulse = Pulse([Peer(_name(rank_0), connection)], timeout_s=timeout_s)
        pulse.start()
        return Member(place, wires, pulse)
    with (
        tempfile.TemporaryDirectory(prefix="subbatch-") as folder,
        Listener(str(Path(folder) / "pulse"), family="AF_UNIX", backlog=place.size) as listener,
    ):
        wires.say({**me, "address": listener.address})
        peers: dict[int, Peer] = {}
        while len(peers) < place.size - 1:
            connection = listener.accept()
            hello = json.loads(connection.recv_bytes(_HELLO_BYTES))
            peers[hello["rank"]] = Peer(_name(hello), connection)
    pulse = Pulse(list(peers.values()), timeout_s=timeout_s)
    pulse.start()
    return Team(place, {rank: peers[rank].name for rank in sorted(peers)}, wires, pulse)


def _name(hello: Mapping[str, Any]) -> str:
    return f"scoring process {hello['rank']} (pid {hello['pid']})"


@contextmanager
def _settled_by(pulse: Pulse) -> Iterator[None]:
    """What the group says when it loses a member names nobody; the pulse does, and ends this process."""
    try:
        yield
    except RuntimeError as error:
        pulse.settle(f"the scoring processes have lost each other: {error}")
        raise
