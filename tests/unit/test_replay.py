import json
from dataclasses import asdict

import numpy as np
import pytest

from shared.dataset import Store
from shared.errors import ConfigError, DataError, FingerprintError
from shared.records import Fingerprints, RunInfo
from shared.selection_config import SelectionConfig
from shared.timing import Timing
from train_client.replay import ReplaySource


@pytest.fixture
def store(world):
    return Store.open(world.store)


@pytest.fixture
def folder(store, tmp_path):
    """Two steps of six rows, recorded by two ranks."""
    rows = {0: ([5, 9, 2], [30, 31, 32]), 1: ([7, 7, 1], [40, 41, 44])}
    for rank in (0, 1):
        lines = [
            {
                "step": step,
                "weights_version": step,
                "large_batch_size": 12,
                "rows": parts[rank],
                "weights": [1.5, 2.0, 2.5],
                "gains": [0.1, 0.2, 0.3],
                "skipped": [8],
            }
            for step, parts in rows.items()
        ]
        (tmp_path / f"steps-rank{rank}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = {"fingerprints": asdict(Fingerprints(store.fingerprint, "tokens"))}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    return tmp_path


def a_run(store, *, num_steps=2, rows=6, dataset=""):
    return RunInfo(
        name="again",
        seed=0,
        timing=Timing(num_steps, 1, 1, 1),
        world_size=1,
        selection=SelectionConfig(large_batch_size=20, sub_batch_size=rows),
        adapter_json="",
        trainable=(),
        fingerprints=Fingerprints(dataset or store.fingerprint, "tokens"),
    )


def test_rows_and_weights_of_all_ranks_are_replayed_as_they_were_recorded(store, folder):
    source = ReplaySource(folder, store)
    source.open(a_run(store), cursor=0, restart=False)
    found = [source.selection(step).selection for step in (0, 1)]
    assert [selection.index.tolist() for selection in found] == [[5, 9, 2, 30, 31, 32], [7, 7, 1, 40, 41, 44]]
    assert found[1].weight.tolist() == [1.5, 2.0, 2.5] * 2
    assert [(s.run, s.step, s.weights_version, s.large_batch_size) for s in found] == [
        ("again", 0, 0, 12),
        ("again", 1, 1, 12),
    ]
    np.testing.assert_array_equal(found[0].num_tokens, [len(store.row(n).input_ids) for n in found[0].index])
    assert found[0].skipped.tolist() == [8]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_steps": 3}, ConfigError, "has 2 steps and lacks step 2, run.num_steps is 3"),
        ({"rows": 5}, DataError, "sub-batches of 6 rows, selection.sub_batch_size is 5"),
        ({"dataset": "other"}, FingerprintError, "data.store has other"),
    ],
)
def test_a_recording_that_does_not_suit_the_run_is_refused_with_both_values(store, folder, changes, error, message):
    with pytest.raises(error, match=message):
        ReplaySource(folder, store).open(a_run(store, **changes), cursor=0, restart=False)


def test_a_folder_without_a_recording_and_a_torn_one_are_refused(store, folder, tmp_path):
    with pytest.raises(ConfigError, match="holds no recorded run"):
        ReplaySource(tmp_path / "nothing", store).open(a_run(store), cursor=0, restart=False)
    with (folder / "steps-rank0.jsonl").open("a") as file:
        file.write('{"step": 2, "ro')
    with pytest.raises(ConfigError, match="can't be read"):
        ReplaySource(folder, store).open(a_run(store), cursor=0, restart=False)
