"""Looks at the journal folder: whose it is, whether what it holds is whole, and how much a run will add."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from pathlib import Path

from selector_server.journal.survey import run_names, survey
from shared.config import Config
from shared.doctor.finding import Finding
from shared.doctor.inputs import announced_weights

# A selection's record without its rows, and a row in it.
_RECORD_BYTES, _ROW_BYTES = 400, 28
_FLOAT_BYTES = 4
# Of each step: the one that is trained, and the one that is pushed.
_VERSIONS_KEPT = 2


def journals(folder: Path) -> Iterable[Finding]:
    """Whether a server could take up what is in the folder."""
    if not folder.exists():
        yield Finding("journal", "ok", f"{folder} isn't there yet; the server makes it")
        return
    if not folder.is_dir():
        what = f"server.journal {folder} is a file"
        yield Finding("journal", "problem", what, "give a folder, or a name that is free")
        return
    if is_held(folder):
        yield Finding("journal", "ok", f"{folder} belongs to a server that is running")
    names = run_names(folder)
    damaged = 0
    for name in names:
        faults = survey(folder, name, thorough=False).faults
        damaged += bool(faults)
        if faults:
            what = f"the journal of run {name!r} in {folder} isn't whole: {faults[0]}"
            yield Finding("journal", "problem", what, "bring it back from a backup, or move its folder away")
    if not damaged:
        yield Finding("journal", "ok", f"{folder} holds {len(names)} runs, all whole")


def needed_bytes(config: Config) -> int:
    """About how much one run of this configuration writes: its selections, what they were picked from, its weights.

    An adapter's size follows from the model's modules, which aren't looked at: only full fine-tuning's weights count.
    """
    selection, server = config.selection, config.server
    step = _RECORD_BYTES + _ROW_BYTES * selection.sub_batch_size
    if server.keep_scores:
        numbers = selection.sketch_size if selection.estimator == "exact" else selection.num_probes
        step += _FLOAT_BYTES * numbers * selection.large_batch_size
    versions = _VERSIONS_KEPT + server.retain_weights
    weights = 0 if config.train.lora else announced_weights(config.model).bytes * versions
    return config.run.num_steps * step + weights


def is_held(folder: Path) -> bool:
    """Whether a server is running on this journal folder."""
    lock = folder / "lock"
    if not lock.is_file():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
