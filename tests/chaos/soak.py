"""One soak: the undisturbed run, the disturbed one, and the verdict."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from tests.chaos import judge, report
from tests.chaos.faults import KINDS
from tests.chaos.job import Attempt
from tests.chaos.rig import Rig, SoakError
from tests.chaos.schedule import Fault, make_schedule
from tests.support import World, run_cli, write_config
from tests.world import make_world

logger = logging.getLogger(__name__)

RANKS = 2
_DISK_BYTES = 24 << 20
_MOST_SECONDS = 3.0
_FINAL = Path("model") / "adapter_model.safetensors"


def soak(out: Path, *, seed: int, num_faults: int, num_steps: int, minutes: float, console: Console) -> list[str]:
    """Run it and write its report to `out`.

    Returns:
        What is wrong, in words; nothing where the disturbed run is the undisturbed one.

    Raises:
        SoakError: a process hung, or the time was up before the run was through.
    """
    deadline = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    world = make_world(out / "world")
    calm_config = _config(out / "calm", world, num_steps=num_steps)
    console.print("the undisturbed run …")
    with Rig(calm_config, out / "calm", ranks=RANKS, deadline=deadline, disk=None) as calm:
        calm.wait_for("the undisturbed run", lambda: calm.is_done)
        if len(calm.job.attempts) > 1:
            raise SoakError(f"the undisturbed run died: {calm.died}")
        calm.server.stop()

    config = _config(out / "chaos", world, num_steps=num_steps)
    with _small_disk(out / "chaos" / "journal") as disk:
        kinds = [name for name, kind in KINDS.items() if disk or not kind.needs_disk]
        schedule = make_schedule(
            kinds, seed=seed, count=num_faults, num_steps=num_steps, num_ranks=RANKS, most_seconds=_MOST_SECONDS
        )
        console.print(f"the disturbed run, {len(schedule)} faults of {len(kinds)} kinds …")
        with Rig(config, out / "chaos", ranks=RANKS, deadline=deadline, disk=disk) as rig:
            struck = [_strike(rig, fault, console) for fault in schedule]
            rig.wait_for("the run's end", lambda: rig.is_done)
            rig.server.stop()
        differences = [*_undeserved_deaths(rig, struck), *_journal_faults(out)]
    calm_told = judge.Told.of(calm.job.now, ranks=RANKS)
    told = [judge.Told.of(attempt, ranks=RANKS) for attempt in rig.job.attempts]
    differences += judge.step_differences(calm_told, told, num_steps=num_steps)
    differences += judge.selection_differences(*(out / name / "selections.parquet" for name in ("calm", "chaos")))
    differences += judge.weights_differences(calm.job.now.output / _FINAL, rig.job.now.output / _FINAL)
    lines = [_line(attempt) for attempt in rig.job.attempts]
    outcome = report.Outcome(
        seed=seed,
        num_steps=num_steps,
        ranks=RANKS,
        undisturbed_s=_seconds([_line(calm.job.now)]),
        disturbed_s=_seconds(lines),
        struck=report.measure(struck, lines),
        lines=lines,
        died=rig.died,
        server_starts=rig.server.starts,
        notes=[] if disk else ["no disk could be mounted here, which takes root: nothing was done to the journal's"],
        differences=differences,
    )
    report.write(outcome, out, console)
    return differences


def _config(folder: Path, world: World, *, num_steps: int) -> Path:
    """The run's configuration, over mutual TLS with a token, so that wrong bytes can't pass for right ones."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        "-addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem".split(),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    (folder / "token").write_text("a-token-of-this-soak-alone\n")
    (folder / "token").chmod(0o600)
    pair = {"ca": folder / "cert.pem", "certificate": folder / "cert.pem", "key": folder / "key.pem"}
    return write_config(
        folder,
        world,
        run={"num_steps": num_steps},
        server={"token_file": folder / "token", "tls": pair},
        client={"token_file": folder / "token", "tls": pair, "wait_timeout_s": 240.0, "connect_timeout_s": 120.0},
        train={"save_every": 4},
    )


def _strike(rig: Rig, fault: Fault, console: Console) -> report.Struck:
    rig.wait_for(
        f"step {fault.at_step}, for fault {fault.number}",
        lambda: rig.is_done or rig.job.now.completed() >= fault.at_step,
    )
    if rig.is_done:
        raise SoakError(f"the run was through before fault {fault.number}, {fault.kind}, struck: give it more steps")
    completed, began = rig.job.now.completed(), time.time_ns()
    KINDS[fault.kind].strike(rig, fault)
    over = time.time_ns()
    rig.keep_up()
    ended = time.time_ns()
    if fault.alone:
        rig.wait_for_progress()
    seconds = (time.time_ns() - began) / 1e9
    console.print(f"{fault.number:3d}  step {completed:3d}  {fault.kind}: {seconds:.1f} s")
    return report.Struck(fault, began, over, ended, completed)


def _undeserved_deaths(rig: Rig, struck: list[report.Struck]) -> list[str]:
    """Attempts that ended though nothing had been done to the job that it may die of."""
    deadly = [each for each in struck if KINDS[each.fault.kind].kills_job]
    return [
        f"attempt {died.attempt} ended though nothing that it may die of had been done to it: {died.words}"
        for died in rig.died
        if not any(rig.job.attempts[died.attempt].began_ns <= each.over_ns and each.began_ns <= died.unix_ns
                   for each in deadly)
    ]  # fmt: skip


def _journal_faults(out: Path) -> list[str]:
    """Verify and export both journals, as a user would."""
    found = []
    for name in ("calm", "chaos"):
        for action in (("verify",), ("export", "--out", out / name / "selections.parquet")):
            done = run_cli("selector_server", "journal", *action, "--config", out / name / "run.toml")
            if done.returncode:
                found.append(f"journal {action[0]} of the {name} run: {done.stderr.strip().splitlines()[-1]}")
    return found


def _line(attempt: Attempt) -> report.Line:
    ends = [row["wait_started_ns"] + int(1e9 * row["step_seconds"]) for row in attempt.rows(0)]
    return report.Line(attempt.began_ns, attempt.first_step, ends)


def _seconds(lines: list[report.Line]) -> float:
    done = [at for line in lines for at in line.completed_ns]
    return (max(done) - min(done)) / 1e9


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    """A disk of a few MiB at `folder`; None where we may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={_DISK_BYTES}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    try:
        yield folder if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
