"""One trace for each step, from the files that a real server and two real ranks export."""

from __future__ import annotations

import collections
import hashlib
import json
from pathlib import Path

import pytest

from tests.support import Server, Trainer, World, write_config

STEPS = 4
ON_THE_SERVER = {"draw", "score", "pick", "journal"}


@pytest.mark.long
def test_a_step_is_one_trace_over_the_server_and_both_ranks(world: World, tmp_path: Path) -> None:
    trace = {"export": "file", "folder": tmp_path / "traces"}
    config = write_config(tmp_path, world, run={"num_steps": STEPS}, trace=trace)
    with Server(config) as server:
        with Trainer(config, "--client.selector", server.address, ranks=2) as trainer:
            trainer.finish()
        assert server.stop() == 0

    files = sorted((tmp_path / "traces").iterdir())
    assert [path.name.rpartition("-")[0] for path in files] == ["selector", "trainer-rank0", "trainer-rank1"]
    spans = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    traces = collections.defaultdict(list)
    for span in spans:
        traces[span["context"]["trace_id"]].append(span)
    assert len(traces) == STEPS

    for step in range(STEPS):
        digest = hashlib.sha256(f"subbatch trace 1\0run\0{step}".encode()).hexdigest()
        found = traces[f"0x{digest[:32]}"]
        ranks = collections.defaultdict(list)
        for span in found:
            ranks[span["attributes"].get("subbatch.rank")].append(span)
        assert {span["name"] for span in ranks[None]} >= ON_THE_SERVER
        for rank in (0, 1):
            assert {"send", "receive", "train", "optimizer"} <= {span["name"] for span in ranks[rank]}
        names = collections.Counter(span["name"] for span in found)
        assert names["send"] == names["receive"] == names["train"] == 2
        # The last version of the weights is of no use to any step.
        pushes = 1 if step < STEPS - 1 else 0
        assert names["push"] <= 1 >= names["store weights"]
        assert names["push"] >= pushes - (step == STEPS - 2)
        assert {span["attributes"]["subbatch.step"] for span in found} == {step}
        (whole,) = [span for span in found if span["parent_id"] is None]
        assert (whole["name"], whole["context"]["span_id"]) == ("step", f"0x{digest[32:48]}")
        assert {span["parent_id"] for span in found if span is not whole} == {f"0x{digest[32:48]}"}
        begins = {span["name"]: span["start_time"] for span in ranks[None] + ranks[0]}
        order = [begins[name] for name in ("draw", "score", "pick", "journal", "receive", "train", "optimizer")]
        assert order == sorted(order)
