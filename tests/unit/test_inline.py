import pytest
import torch

from shared.config import ModelConfig
from shared.dataset import Store
from shared.errors import CursorError
from shared.model import load_base_model, trainable_tensors
from shared.records import Fingerprints, RunInfo
from shared.selection_config import SelectionConfig
from shared.timing import Timing
from shared.weights import tensor_specs
from shared.wire import same_selection
from train_client.inline import InlineSource
from train_client.ranks import Ranks


@pytest.fixture
def parts(world):
    model = load_base_model(ModelConfig(path=str(world.model)), torch.device("cpu")).requires_grad_()
    return model, Store.open(world.store), Ranks(0, 1)


def a_run(parts, *, seed=3, staleness=1, **selection):
    return RunInfo(
        name="run",
        seed=seed,
        timing=Timing(6, staleness, 1, staleness),
        world_size=1,
        selection=SelectionConfig(large_batch_size=10, sub_batch_size=4, **selection),
        adapter_json="",
        trainable=tensor_specs(trainable_tensors(parts[0])),
        fingerprints=Fingerprints("data", "tokens"),
    )


def train(source, first, last):
    selections = []
    for step in range(first, last):
        selections.append(source.selection(step).selection)
        source.attempted(step + 1)
    return selections


@pytest.mark.parametrize("preset", ["paper", "colm", "matched"])
def test_a_run_goes_on_from_its_checkpoint_as_if_nothing_had_happened(parts, preset):
    undisturbed = InlineSource(*parts)
    undisturbed.open(a_run(parts, preset=preset), cursor=0, restart=False)
    expected = train(undisturbed, 0, 6)

    first, second = InlineSource(*parts), InlineSource(*parts)
    first.open(a_run(parts, preset=preset), cursor=0, restart=False)
    before = train(first, 0, 3)
    second.load_state(first.state())
    second.open(a_run(parts, preset=preset), cursor=3, restart=False)
    after = train(second, 3, 6)
    assert all(same_selection(a, b) for a, b in zip([*before, *after], expected, strict=True))


@pytest.mark.parametrize("changes", [{"seed": 4}, {"num_blocks": 2}, {"feedback": 0.3}])
def test_a_history_of_other_settings_is_refused_with_both(parts, changes):
    first, second = InlineSource(*parts), InlineSource(*parts)
    first.open(a_run(parts, preset="matched"), cursor=0, restart=False)
    train(first, 0, 2)
    second.load_state(first.state())
    with pytest.raises(CursorError, match=r"before step 2, made with seed \d, .*; the checkpoint has those of seed 3"):
        second.open(a_run(parts, preset="matched", **changes), cursor=2, restart=False)


def test_a_checkpoint_of_a_server_run_has_no_history_to_go_on_from(parts):
    source = InlineSource(*parts)
    source.load_state({"incarnation": 3})
    with pytest.raises(CursorError, match="the checkpoint has those of no inline run: resume with the settings"):
        source.open(a_run(parts, preset="colm", staleness=0), cursor=2, restart=False)
