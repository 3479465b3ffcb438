"""Real runs of a real server, proved offline: bit-equal as they are, and every way of tampering is found."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from safetensors.numpy import load, save

from selector_server.journal import Journal, JournalReader
from selector_server.journal.command import run_journal
from selector_server.replay.command import run_replay
from selector_server.run import Run
from selector_server.run_state import RunState
from shared.config import ClientConfig, load_config
from shared.errors import ConfigError, FingerprintError, JournalError, RunNotFoundError
from shared.weights import encode_weights
from shared.wire import decode_selection, encode_selection
from tests.contract.journal_by_hand import Entry, chains, file_of, frames_of, tamper
from tests.service.harness import Job, LiveServer
from tests.support import World, run_cli, write_config
from train_client.client import SelectorClient

STEPS = 5
RUNS: dict[str, dict[str, Any]] = {
    "paper": {},
    "colm": {"preset": "colm"},
    "matched": {"preset": "matched"},
    "hardest": {"preset": "hardest"},
    "random": {"pick": "random"},
    "prompts": {"soft_labels": True, "num_probes": 2, "pick": "local_pivotal"},
    "weights": {"criterion": "weight_grad", "weighting": "gamma"},
}


def train(server: LiveServer, job: Job, name: str, *, cursor: int, stop: int, shift: int) -> None:
    """A trainer from one step to another, without training; `shift` gives a branch weights of its own."""
    client = SelectorClient(_client(server), run=name, rank=0)
    info = job.info(name, num_steps=STEPS, **RUNS[name])
    incarnation, missing = client.open_run(info, cursor=cursor, restart=False)
    for version in missing:
        client.push(version, encode_weights(job.weights(version + shift)))
    client.attach(incarnation, from_step=cursor, num_steps=STEPS)
    for step in range(cursor, stop):
        client.selection(step)
        if info.selection.scores and info.timing.steps_using(step + 1):
            client.push(step + 1, encode_weights(job.weights(step + 1 + shift)))
        client.report(step + 1)
    if stop == STEPS:
        client.close_run()
    else:
        client.selection(stop)
    client.close()


def _client(server: LiveServer) -> ClientConfig:
    return ClientConfig(selector=server.address, wait_timeout_s=60.0, connect_timeout_s=60.0)


@pytest.fixture(scope="module")
def journals(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Each run trained to step 3, rolled back to 1, and trained to its end on other weights; two keep their weights."""
    folder = tmp_path_factory.mktemp("replay") / "journal"

    def open_journal(path: Path) -> Journal:
        return Journal(path, retain_weights=0 if path.name == "hardest" else STEPS, keep_scores=path.name != "colm")

    with LiveServer(world, folder, max_runs=len(RUNS), open_journal=open_journal) as server:
        job = Job(world, server.fingerprints)
        for name in RUNS:
            train(server, job, name, cursor=0, stop=3, shift=0)
            train(server, job, name, cursor=1, stop=STEPS, shift=100)
        yield folder


@pytest.fixture
def copy(journals: Path, tmp_path: Path) -> Path:
    """The journals, to be damaged."""
    return Path(shutil.copytree(journals, tmp_path / "journal"))


def replay(world: World, folder: Path, name: str, capsys: pytest.CaptureFixture[str], **options: Any) -> Any:
    """What `replay --json` prints, and the error it ends with."""
    config = load_config(write_config(folder.parent / "config", world, server={"journal": folder, "device": "cpu"}))
    settings = {"from_step": 0, "to_step": None, "rescore": False, "as_json": True, **options}
    error = None
    capsys.readouterr()
    try:
        run_replay(name, config, console=Console(), **settings)
    except JournalError as caught:
        error = caught
    return json.loads(capsys.readouterr().out), error


def verdicts(report: Any, part: str) -> list[str]:
    return [step[part]["verdict"] for step in report["steps"]]


# ---- runs as they are


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_rolled_back_is_bit_equal_in_all_that_can_be_checked(
    world: World, journals: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    report, error = replay(world, journals, name, capsys, rescore=True)
    assert error is None
    assert report["incarnation"] == 2
    assert report["set_aside"] in ([0] if name == "random" else [1, 2]), "step 3 used weights 2, and step 4 weights 3"
    expected = ["equal"] * STEPS
    if name == "hardest":  # no weights are left
        assert verdicts(report, "scores") == ["unchecked"] * STEPS
        assert "server.retain_weights" in report["steps"][0]["scores"]["why"]
    elif name in ("colm", "random"):  # no scores are kept, or there are none
        assert verdicts(report, "scores") == ["unchecked"] * STEPS
    else:
        assert verdicts(report, "scores") == expected
    assert verdicts(report, "pick") == expected
    assert verdicts(report, "draw") == (["unchecked"] * STEPS if name == "colm" else expected)


def test_without_rescoring_picks_are_computed_from_what_the_journal_keeps(
    world: World, journals: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("paper", "matched", "hardest", "prompts"):
        report, error = replay(world, journals, name, capsys)
        assert error is None
        assert verdicts(report, "pick") == verdicts(report, "draw") == ["equal"] * STEPS
        assert "--rescore" in report["steps"][0]["scores"]["why"]
    for name, reason in (("colm", "keeps no scores"), ("weights", "looks at weights")):
        report, error = replay(world, journals, name, capsys)
        assert error is None
        assert verdicts(report, "pick") == ["unchecked"] * STEPS
        assert reason in report["steps"][0]["pick"]["why"]


def test_the_command_prints_a_table_while_the_server_runs_and_changes_nothing(world: World, journals: Path) -> None:
    before = {path: path.read_bytes() for path in journals.rglob("*") if path.is_file()}
    config = write_config(journals.parent / "config", world, server={"journal": journals, "device": "cpu"})
    done = run_cli("selector_server", "replay", "matched", "--config", config, "--from-step", 1, "--to-step", 3)
    assert done.returncode == 0, done.stderr
    assert "steps 1 to 3" in done.stdout
    assert done.stdout.count("bit-equal") == 2, "one line for steps of which the same is to be said"
    assert "1–3" in done.stdout
    assert before == {path: path.read_bytes() for path in journals.rglob("*") if path.is_file()}


def test_steps_a_run_does_not_have_and_another_store_are_refused(
    world: World, journals: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="steps 3 to 9 can't be replayed: run 'paper' has 5 steps, 5 of them"):
        replay(world, journals, "paper", capsys, from_step=3, to_step=9)
    with pytest.raises(RunNotFoundError, match="holds no run 'other'"):
        replay(world, journals, "other", capsys)
    other = World(world.model, world.heldout, world.heldout, world.rows)
    with pytest.raises(FingerprintError, match="drew from a store with fingerprint"):
        replay(other, journals, "paper", capsys)


# ---- the chain


@pytest.mark.parametrize("name", ["paper", "random"])
def test_the_chain_is_what_the_contract_says_also_across_a_rewind(journals: Path, name: str) -> None:
    entries = frames_of((journals / name / "journal.bin").read_bytes())
    found = {p: e.record.selection.chain for p, e in enumerate(entries) if e.record.HasField("selection")}
    assert found == chains(entries)
    assert len(set(found.values())) == len(found)


def _swap_arrow(entry: Entry) -> None:
    entry.record.selection.arrow = bytes(reversed(entry.record.selection.arrow))


CHANGES: dict[str, Callable[[Entry], None]] = {
    "arrow": _swap_arrow,
    "history": lambda e: setattr(e.record.selection, "history", b"other"),
    "scores_sha256": lambda e: setattr(e.record.selection, "scores_sha256", bytes(32)),
    "weights_sha256": lambda e: setattr(e.record.selection, "weights_sha256", "ab" * 32),
    "weights_version": lambda e: setattr(e.record.selection, "weights_version", 3),
    "chain": lambda e: setattr(e.record.selection, "chain", bytes(32)),
}


@pytest.mark.parametrize("changed", CHANGES)
@pytest.mark.parametrize("step", [0, 3])
def test_a_changed_record_with_right_checksums_breaks_the_chain(copy: Path, changed: str, step: int) -> None:
    tamper(copy / "paper" / "journal.bin", step, CHANGES[changed], chained=False)
    with pytest.raises(JournalError, match=f"chain of selections is broken at step {step}"):
        RunState(JournalReader(copy / "paper"))
    with pytest.raises(JournalError, match="chain of selections is broken"):
        Run(Journal(copy / "paper"))


def test_a_selection_that_is_left_out_or_put_in_breaks_the_chain(copy: Path) -> None:
    path = copy / "paper" / "journal.bin"
    entries = frames_of(path.read_bytes())
    places = [p for p, entry in enumerate(entries) if entry.record.HasField("selection")]
    for changed in (
        entries[: places[1]] + entries[places[1] + 1 :],
        [*entries[: places[2]], entries[places[1]], *entries[places[2] :]],
    ):
        path.write_bytes(file_of(changed))
        with pytest.raises(JournalError, match="chain of selections is broken"):
            RunState(JournalReader(copy / "paper"))


def test_weights_that_were_not_those_of_the_record_cannot_be_told_of_afterwards(copy: Path) -> None:
    path = copy / "paper" / "journal.bin"
    entries = frames_of(path.read_bytes())
    next(e for e in entries if e.record.HasField("weights")).record.weights.sha256 = "00" * 32
    path.write_bytes(file_of(entries))
    with pytest.raises(JournalError, match="broken at step 0"):
        RunState(JournalReader(copy / "paper"))


# ---- tampering that every checksum and hash agrees with


def _edit_arrow(**changes: Callable[[Any], Any]) -> Callable[[Entry], None]:
    def change(entry: Entry) -> None:
        selection = decode_selection(entry.record.selection.arrow)
        values = {name: edit(getattr(selection, name).copy()) for name, edit in changes.items()}
        entry.record.selection.arrow = encode_selection(type(selection)(**(vars(selection) | values)))

    return change


def _edit_scores(name: str, edit: Callable[[Any], Any]) -> Callable[[Entry], None]:
    def change(entry: Entry) -> None:
        head = int.from_bytes(entry.attachment[:8], "little")
        metadata = json.loads(entry.attachment[8 : 8 + head])["__metadata__"]
        tensors = load(entry.attachment)
        tensors[name] = edit(tensors[name].copy())
        entry.attachment = save(tensors, metadata=metadata)

    return change


def _last_bit(array: np.ndarray) -> np.ndarray:
    array.view(f"u{array.dtype.itemsize}").reshape(-1)[-1] ^= 1
    return array


def _history(entry: Entry) -> None:
    values = np.frombuffer(entry.record.selection.history, "<f4").copy()
    entry.record.selection.history = _last_bit(values).tobytes()


@pytest.mark.parametrize(
    ("name", "change", "part", "where"),
    [
        ("paper", _edit_arrow(index=np.flip), "pick", "index [0]: recorded"),
        ("matched", _edit_arrow(weight=_last_bit), "pick", "weight [3]: recorded"),
        ("random", _edit_arrow(weight=_last_bit), "pick", "weight [3]: recorded"),
        ("matched", _edit_arrow(gain=_last_bit), "pick", "gain [3]: recorded"),
        ("matched", _history, "pick", "history: recorded"),
        ("paper", _edit_scores("rows", np.flip), "draw", "drawn rows [0]: recorded"),
        ("paper", _edit_scores("c", np.negative), "scores", "c [0, 0]: recorded"),
        ("matched", _edit_scores("sketch", _last_bit), "scores", "sketch [7, "),
        ("prompts", _edit_scores("prompt", _last_bit), "scores", "prompt [7, "),
        ("matched", _edit_scores("sketch", np.negative), "pick", "history"),
        ("hardest", _edit_scores("loss", np.negative), "pick", "index"),
        ("paper", _edit_scores("loss", lambda loss: loss[:-1]), "scores", "isn't what a step's are"),
    ],
)
def test_tampering_that_the_chain_agrees_with_is_found_where_it_is(
    world: World,
    copy: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: Callable[[Entry], None],
    part: str,
    where: str,
) -> None:
    tamper(copy / name / "journal.bin", 3, change, chained=True)
    report, error = replay(world, copy, name, capsys, rescore=True)
    assert report["steps"][3][part]["verdict"] == "differs"
    assert where in report["steps"][3][part]["why"]
    assert "the first is step 3" in str(error)
    others = [step for step in report["steps"] if step["step"] < 3]
    assert all(step[p]["verdict"] != "differs" for step in others for p in ("draw", "scores", "pick"))


def test_changed_weights_on_disk_and_damaged_scores_are_found(
    world: World, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next((copy / "paper" / "weights").glob("v0000000002-*"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    report, error = replay(world, copy, "paper", capsys, rescore=True)
    assert verdicts(report, "scores") == ["equal", "equal", "equal", "differs", "equal"], "step 3 uses version 2"
    assert "are damaged" in report["steps"][3]["scores"]["why"]
    assert error is not None
    path = copy / "matched" / "journal.bin"
    data = bytearray(path.read_bytes())
    attachment = next(e.attachment for e in frames_of(bytes(data)) if e.attachment)
    data[data.index(attachment) + len(attachment) // 2] ^= 1
    path.write_bytes(data)
    assert RunState(JournalReader(copy / "matched")).next_step == STEPS, "a server goes on: no record depends on it"
    with pytest.raises(JournalError, match="1 of 1 journals"):
        run_journal("verify", copy, ["matched"], None, Console(quiet=True))


# ---- list, verify, export


def test_journals_are_listed_and_verified_and_selections_exported(journals: Path, tmp_path: Path) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    run_journal("list", journals, [], None, console)
    run_journal("verify", journals, [], None, console)
    text = console.export_text()
    lines = [line.split() for line in text.splitlines()]
    assert all(sum(line[1:2] == [name] for line in lines) == 2 for name in RUNS)
    assert "5/5" in text
    out = tmp_path / "deep" / "selections.parquet"
    run_journal("export", journals, ["paper", "random"], out, console)
    table = pq.read_table(out).to_pydict()
    state = RunState(JournalReader(journals / "paper"))
    truth = [decode_selection(state.selection(step).arrow) for step in range(STEPS)]
    mine = [i for i, run in enumerate(table["run"]) if run == "paper"]
    assert sorted(set(table["run"])) == ["paper", "random"]
    for column in ("index", "source", "weight", "gain", "num_tokens"):
        assert [table[column][i] for i in mine] == [v for s in truth for v in getattr(s, column).tolist()]
    assert [table["step"][i] for i in mine] == [step for step in range(STEPS) for _ in range(4)]
    assert [table["weights_version"][i] for i in mine] == [s.weights_version for s in truth for _ in range(4)]
    assert not list(out.parent.glob("*.part"))


def test_what_cannot_be_listed_or_exported_is_refused(journals: Path, tmp_path: Path) -> None:
    console = Console(quiet=True)
    with pytest.raises(RunNotFoundError, match="no run 'other'"):
        run_journal("verify", journals, ["other"], None, console)
    with pytest.raises(JournalError, match="no journal folder"):
        run_journal("list", tmp_path / "nothing", [], None, console)
    with pytest.raises(ConfigError, match="--out FILE belongs to `export`"):
        run_journal("export", journals, [], None, console)


def test_weights_that_no_record_tells_of_and_a_torn_tail_are_told(copy: Path) -> None:
    console = partial(Console, record=True, width=200, file=io.StringIO())
    (copy / "paper" / "weights" / "v0000000009-0123456789abcdef.safetensors").write_bytes(b"x")
    with pytest.raises(JournalError, match="paper"):
        run_journal("verify", copy, ["paper"], None, console())
    path = copy / "random" / "journal.bin"
    path.write_bytes(path.read_bytes()[:-3])
    shown = console()
    run_journal("verify", copy, ["random"], None, shown)
    assert "no whole record" in " ".join(shown.export_text().split())
