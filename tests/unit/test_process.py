"""Running commands: their logs, their failures, and their end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shared.errors import SubbatchError
from train_client.process import Command, available_cores, count_lines, environment_of, free_port, peak_memory

SLEEPER = "import subprocess, time; subprocess.Popen(['sleep', '600']); print('ready', flush=True); time.sleep(600)"


def test_a_command_that_fails_is_told_with_its_error_line(tmp_path: Path) -> None:
    code = "import sys; print('before'); print('error: no such model', file=sys.stderr); print('after'); sys.exit(3)"
    with (
        Command("the trainer", "-c", code, log=tmp_path / "logs" / "train.log") as command,
        pytest.raises(
            SubbatchError, match=r"the trainer exited with 3: error: no such model \(all of it is in .*train"
        ),
    ):
        command.wait()


def test_a_command_that_fails_without_our_error_is_told_with_its_last_line(tmp_path: Path) -> None:
    with (
        Command("the trainer", "-c", "1 / 0", log=tmp_path / "log") as command,
        pytest.raises(SubbatchError, match="exited with 1: ZeroDivisionError: division by zero"),
    ):
        command.wait()


def test_a_server_that_ends_before_its_ready_line_is_a_failure(tmp_path: Path) -> None:
    code = "import sys; sys.exit('error: port taken')"
    with (
        Command("the server", "-c", code, log=tmp_path / "log", read_output=True) as command,
        pytest.raises(SubbatchError, match="the server exited with 1: error: port taken"),
    ):
        command.first_line()


def test_stopping_a_command_ends_what_it_started_too(tmp_path: Path) -> None:
    with Command("sleeper", "-c", SLEEPER, log=tmp_path / "log", read_output=True) as command:
        assert command.first_line() == "ready\n"
        mine = [p for p in psutil.Process().children(recursive=True) if p.name() == "sleep" or SLEEPER in p.cmdline()]
        assert len(mine) == 2
        assert command.running
    assert not psutil.wait_procs(mine, timeout=60)[1]


def test_a_command_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train_client.process._GRACE_S", 0.01)
    ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = f"{ignoring}; print('ready', flush=True); time.sleep(600)"
    with Command("stubborn", "-c", code, log=tmp_path / "log", read_output=True) as command:
        command.first_line()
    assert not command.running


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="cores are Linux's")
def test_a_command_stays_on_its_cores_and_sees_its_environment(tmp_path: Path) -> None:
    core = available_cores()[-1]
    code = "import os; print(os.sched_getaffinity(0), os.environ['OMP_NUM_THREADS'], os.environ['MINE'])"
    environment = environment_of(MINE="yes")
    with Command("c", "-c", code, log=tmp_path / "log", cores=[core], environment=environment) as command:
        command.wait()
    assert (tmp_path / "log").read_text() == f"{{{core}}} 1 yes\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_peak_memory_counts_what_was_given_back_and_not_what_the_starter_held(tmp_path: Path) -> None:
    held = bytearray(os.urandom(1) * (300 << 20))
    code = "x = bytearray(b'1' * (100 << 20)); del x; print('ready', flush=True); import time; time.sleep(600)"
    with Command("c", "-c", code, log=tmp_path / "log", read_output=True) as command:
        command.first_line()
        peak = command.peak_memory()
    assert peak is not None
    assert 100 << 20 < peak < 290 << 20
    assert (peak_memory("self") or 0) > len(held)
    assert peak_memory(0) is None


def test_only_whole_lines_are_counted(tmp_path: Path) -> None:
    assert count_lines(tmp_path / "none") == 0
    (tmp_path / "some").write_text("a\nb\nc")
    assert count_lines(tmp_path / "some") == 2


def test_a_free_port_is_free_and_none_that_outgoing_connections_get(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        port = free_port()
        listener.bind(("127.0.0.1", port))
        listener.listen()
        assert port < 32768
        monkeypatch.setattr("train_client.process._SERVER_PORTS", range(port, port + 1))
        with pytest.raises(SubbatchError, match=f"from {port} to {port} is free"):
            free_port()


@pytest.mark.skipif(len(available_cores()) < 2, reason="there is one core to be on")
def test_a_command_that_runs_can_be_kept_on_a_core(tmp_path: Path) -> None:
    with Command("sleeper", "-c", SLEEPER, log=tmp_path / "log", read_output=True) as command:
        assert command.first_line() == "ready\n"
        (mine,) = (p for p in psutil.Process().children() if SLEEPER in p.cmdline())
        for core in available_cores()[:2]:
            command.pin([core])
            assert {tuple(os.sched_getaffinity(thread.id)) for thread in mine.threads()} == {(core,)}
        command.pin([])
        assert mine.cpu_affinity() == [core]


def test_a_paused_command_stands_still_until_it_goes_on_and_can_be_stopped(tmp_path: Path) -> None:
    with Command("sleeper", "-c", SLEEPER, log=tmp_path / "log", read_output=True) as command:
        assert command.first_line() == "ready\n"
        (mine,) = (p for p in psutil.Process().children() if SLEEPER in p.cmdline())
        command.pause()
        assert mine.status() == psutil.STATUS_STOPPED
        command.resume()
        assert mine.status() != psutil.STATUS_STOPPED
        command.pause()
    assert not command.running


def test_a_command_that_is_paused_dies_with_us_where_that_was_asked_for(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal; from train_client.process import Command; log = pathlib.Path('log');"
        f"command = Command('sleeper', '-c', {SLEEPER!r}, log=log, read_output=True, dies_with_us=True);"
        "command.first_line(); command.pause(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    left = [p for p in psutil.process_iter(["cmdline"]) if SLEEPER in (p.info["cmdline"] or [])]
    assert not psutil.wait_procs(left, timeout=30)[1]
