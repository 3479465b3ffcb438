"""From scores to picks, whatever the rows, sources and config: a sub-batch that a trainer can take."""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from selector_server.adam import AdamState
from selector_server.features import features_of
from selector_server.picks.choose import pick_rows
from selector_server.scoring.probes import Probes
from selector_server.scoring.scorer import Scores
from shared.errors import SelectionError
from shared.random import Purpose, stream
from shared.selection_config import SelectionConfig

PICKS = get_args(SelectionConfig.model_fields["pick"].annotation)
# Picks whose weights add up to the batch on average over many batches, or make up for what isn't picked.
FREE_SUM = ("matching_pursuit",)
SHAPE = (6, 5)


@dataclass
class Batch:
    scores: Scores
    probes: Probes
    weight: np.ndarray
    past: AdamState
    source: np.ndarray
    source_rows: list[int]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    b, n, num_sources = draw(st.integers(1, 12)), draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(1, 4))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = {
        "all different": lambda width: numbers.standard_normal((b, width)),
        "all equal": lambda width: np.repeat(numbers.standard_normal((1, width)), b, axis=0),
        "many equal": lambda width: numbers.integers(-1, 2, (b, width)).astype(np.float64),
        "no gradient": lambda width: np.zeros((b, width)),
        "one huge": lambda width: numbers.standard_normal((b, width)) * np.where(np.arange(b) == 0, 1e12, 1.0)[:, None],
        "tiny": lambda width: numbers.standard_normal((b, width)) * 1e-12,
    }
    make = rows[draw(st.sampled_from(sorted(rows)))]
    found: dict[str, Any] = {"loss": np.abs(make(1)[:, 0]), "sketch" if draw(st.booleans()) else "c": make(n)}
    if draw(st.booleans()):
        found["prompt"] = rows[draw(st.sampled_from(sorted(rows)))](3)
    for row in draw(st.sets(st.integers(0, b - 1), max_size=b // 3)):
        for values in found.values():
            values[row] = np.nan
    past = AdamState.initial(n)
    for _ in range(draw(st.integers(0, 2))):
        past = past.updated(numbers.standard_normal((4, n)), SelectionConfig())
    source = numbers.integers(0, num_sources, b)
    if num_sources > 1 and draw(st.booleans()):
        source[:], source[0] = 0, num_sources - 1  # a source with one row
    source_rows = np.bincount(source, minlength=num_sources) + numbers.integers(0, 50, num_sources)
    probes = Probes(SHAPE, seed=draw(st.integers(0, 99)), step=0, count=n)
    weight = numbers.standard_normal(SHAPE).astype(np.float32)
    return Batch(Scores(**found), probes, weight, past, source, source_rows.tolist())


@st.composite
def selections(draw: st.DrawFn, pick: str, b: int) -> SelectionConfig:
    choices: dict[str, Any] = {"large_batch_size": b, "pick": pick, "sub_batch_size": draw(st.integers(1, b))}
    if draw(st.booleans()):
        choices["sub_batch_size"] = draw(st.sampled_from([1, b]))
    choices["criterion"] = draw(st.sampled_from(["grad", "weight", "weight_grad"]))
    choices["sparsify_k"] = draw(st.sampled_from([1, 7, 500]))
    choices["adam_features"] = draw(st.booleans())
    choices["adam_epsilon"] = draw(st.sampled_from([1e-8, 0.1]))
    choices["inclusion"] = draw(st.sampled_from(["equal", "norm"]))
    choices["norm_share"] = draw(st.sampled_from([0.5, 1.0]))
    if pick == "facility_location":
        choices["keep_small_sources"] = draw(st.booleans())
        choices["quotas"] = draw(st.sampled_from(["none", "proportional", "balanced"]))
        choices["weighting"] = draw(st.sampled_from(["none", "gamma"]))
    try:
        return SelectionConfig(**choices)
    except ValidationError:  # a pick that wants the gradients themselves
        return SelectionConfig(**choices | {"adam_features": False, "criterion": "grad"})


def picks_of(batch: Batch, selection: SelectionConfig):
    """As the engine does it: rows that aren't finite are left out before anything compares rows."""
    scores, usable = batch.scores, np.flatnonzero(batch.scores.finite)
    c, sketch, prompt = (None if x is None else x[usable] for x in (scores.c, scores.sketch, scores.prompt))
    features = features_of(
        selection, c=c, probes=batch.probes, sketch=sketch, prompt=prompt, weight=batch.weight, adam=batch.past
    )
    more = {"target": features.values.sum(axis=0)} if selection.pick == "matching_pursuit" else {}
    picks = pick_rows(
        selection,
        features,
        source=batch.source[usable],
        source_rows=batch.source_rows,
        loss=scores.loss[usable],
        generator=stream(7, Purpose.PICK, step=3),
        device="cpu",
        **more,
    )
    return features, picks, usable


@pytest.mark.parametrize("pick", PICKS)
@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_any_batch_gives_exactly_r_different_usable_rows_with_weights_for_the_whole_batch(pick, data):
    batch = data.draw(batches())
    selection = data.draw(selections(pick, len(batch.source)))
    usable, r = np.flatnonzero(np.isfinite(batch.scores.loss)), selection.sub_batch_size
    if len(usable) < r:
        with pytest.raises(SelectionError, match="can't pick"):
            picks_of(batch, selection)
        return
    features, picks, _ = picks_of(batch, selection)
    assert np.isfinite(features.values).all()
    assert np.isfinite(features.norm).all()
    assert (features.norm >= 0).all()
    assert picks.index.dtype == np.int64
    assert len(picks.index) == len(set(picks.index.tolist())) == r
    assert np.isin(picks.index, np.arange(len(usable))).all()
    assert not np.isnan(batch.scores.loss[usable[picks.index]]).any()
    assert picks.weight.shape == picks.gain.shape == (r,)
    assert np.isfinite(picks.weight).all()
    assert np.isfinite(picks.gain).all()
    assert (picks.weight >= 0).all()
    unequal = pick in ("local_pivotal", "cube") and selection.inclusion == "norm"
    if pick not in FREE_SUM and not unequal:
        np.testing.assert_allclose(picks.weight.sum(), len(usable), rtol=1e-6)


@pytest.mark.parametrize("pick", PICKS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_the_same_batch_gives_the_same_bits_again(pick, data):
    batch = data.draw(batches())
    selection = data.draw(selections(pick, len(batch.source)))
    if batch.scores.finite.sum() < selection.sub_batch_size:
        return
    (first, picks, _), (again, repeated, _) = (picks_of(batch, selection) for _ in range(2))
    for left, right in [
        (first.values, again.values),
        (first.norm, again.norm),
        (picks.index, repeated.index),
        (picks.weight, repeated.weight),
        (picks.gain, repeated.gain),
    ]:
        assert left.tobytes() == right.tobytes()
