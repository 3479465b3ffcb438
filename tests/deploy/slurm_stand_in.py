"""A small stand-in for Slurm's `srun` and `scontrol`, one process a node on this machine, for jobs that tests submit.

It knows the options that our script uses and refuses others; a node's name is one of this machine's loopback addresses.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType


def install(folder: Path) -> None:
    """Write `srun` and `scontrol` into a folder that goes on the PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for command in ("srun", "scontrol"):
        path = folder / command
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {command} "$@"\n')
        path.chmod(0o755)


def hostnames(nodes: str) -> list[str]:
    """The names in a list such as `127.0.0.[2-3,5]`; one pair of brackets at most."""
    pattern = re.fullmatch(r"([^\[\],]*)\[([^\]]+)\]", nodes)
    if pattern is None:
        return nodes.split(",")
    ranges = [part.partition("-")[::2] for part in pattern[2].split(",")]
    return [pattern[1] + str(number) for first, last in ranges for number in range(int(first), int(last or first) + 1)]


def scontrol(arguments: list[str]) -> int:
    if arguments[:2] == ["show", "hostnames"]:
        print("\n".join(hostnames(arguments[2])))
        return 0
    if arguments[0] == "requeue" and arguments[1] == os.environ["SLURM_JOB_ID"]:
        Path(os.environ["STAND_IN_REQUEUED"]).touch()
        return 0
    print(f"the stand-in knows no scontrol {arguments}", file=sys.stderr)
    return 1


def srun(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="srun", allow_abbrev=False)
    parser.add_argument("--het-group", required=True)
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--ntasks", type=int)
    parser.add_argument("--ntasks-per-node", type=int, choices=[1])
    parser.add_argument("--kill-on-bad-exit", type=int)
    parser.add_argument("--unbuffered", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    nodes = hostnames(os.environ[f"SLURM_JOB_NODELIST_HET_GROUP_{given.het_group}"])[: given.nodes]
    if given.ntasks not in (None, len(nodes)):
        parser.error(f"{given.ntasks} tasks on {len(nodes)} nodes")
    tasks = [
        subprocess.Popen(
            given.command,
            env={
                **os.environ,
                "SLURM_PROCID": str(rank),
                "SLURM_NODEID": str(rank),
                "SLURM_NTASKS": str(len(nodes)),
                "SLURMD_NODENAME": node,
            },
        )
        for rank, node in enumerate(nodes)
    ]

    def forward(number: int, _frame: FrameType | None = None) -> None:
        for task in tasks:
            task.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    worst, running = 0, {task.pid: task for task in tasks}
    while running:
        pid, status = os.wait()
        running.pop(pid).returncode = code = os.waitstatus_to_exitcode(status)
        worst = max(worst, code if code >= 0 else 128 - code)
        if code != 0 and given.kill_on_bad_exit:
            for task in running.values():
                task.terminate()
    return worst


if __name__ == "__main__":
    sys.exit({"srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
