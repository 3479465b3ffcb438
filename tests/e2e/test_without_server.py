"""A real job of two ranks that goes on while its server is dead, and is resumed from a checkpoint before that."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.records import Selection
from tests.e2e.test_resume import steps_done, wait_until
from tests.e2e.test_selections import LOOP, assert_same_selections, assert_same_weights, given
from tests.support import Server, Trainer, World, journalled_selections, write_config


def fallbacks(selections: dict[int, Selection]) -> list[int]:
    return sorted(step for step, selection in selections.items() if selection.fallback)


@pytest.mark.long
@pytest.mark.slow
def test_a_job_trains_on_without_its_server_and_a_rollback_past_that_ends_with_the_same_weights(
    world: World, tmp_path: Path
) -> None:
    config = write_config(tmp_path, world, run={"num_steps": 40})
    output = tmp_path / "train"
    with Server(config) as server:
        sample = (f"--client.selector={server.address}", "--client.on_unavailable=sample", "--client.away_after_s=1")
        with Trainer(config, *sample, "--fault.save_at=5", "--fault.sleep=1.2", script=LOOP, ranks=2) as trainer:
            wait_until(lambda: steps_done(output) >= 8, trainer)
            server.kill()
            wait_until(lambda: len(fallbacks(given(output))) >= 3, trainer)
            server.restart()
            trainer.finish()
        first = given(output)
        without = fallbacks(first)
        assert 3 <= len(without)
        assert not first[39].fallback, "the server came back too late for this test"
        assert_same_selections(given(output, 1), first)
        assert_same_selections(journalled_selections(tmp_path / "journal"), first)

        again = (f"--client.selector={server.address}", f"--fault.resume={output / 'saved'}")
        with Trainer(config, *again, f"--train.output={tmp_path / 'again'}", script=LOOP, ranks=2) as trainer:
            trainer.finish()
    after = given(tmp_path / "again")
    assert sorted(after) == list(range(5, 40))
    assert_same_selections(after, {step: first[step] for step in after})
    assert_same_weights(tmp_path / "again", output)
