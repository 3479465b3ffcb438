"""How a step's sub-batch is found: every choice of the method, and the presets that make them together.

Part of a run's identity: it is sent when a run is opened, kept in its journal, and can't change while the run lives.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shared.branch import Branch, Positive

# What a preset decides; keys that are given beside it win. The README says what was measured of them.
PRESETS: dict[str, dict[str, Any]] = {
    # The paper: one probe, k largest coordinates, unweighted facility location over the whole large batch.
    "paper": {},
    # CoLM (ICLR 2025): Adam-normalised estimates, facility location source by source, small sources kept whole.
    "colm": {"adam_features": True, "quotas": "proportional", "keep_small_sources": True},
    # The paper's facility location on exact gradients of the last block instead of one probe of its V projection.
    "paper_exact": {"estimator": "exact", "gradient_of": "last_blocks"},
    # The lowest gradient error with little bias: exact gradients of the last block, matched by weighted rows.
    "matched": {"estimator": "exact", "gradient_of": "last_blocks", "pick": "matching_pursuit"},
    # The rows with the largest losses, from one forward pass: no stand-in for the large batch, but no step goes to what
    # is learnt already (Jiang et al. 2019, "the biggest losers").
    "hardest": {"pick": "loss"},
}

_DETAILS = {
    "estimator": ("gradient_of",),
    "gradient_of": ("adam_features",),
    "pick": ("adam_features", "quotas", "keep_small_sources", "weighting"),
}


class SelectionConfig(Branch):
    """The method and its sizes. `preset` sets the keys that aren't given themselves."""

    # Sets the keys below that aren't given: see "How rows are chosen" in the README.
    preset: Literal["paper", "colm", "paper_exact", "matched", "hardest"] = "paper"
    # b: rows drawn for a step, and scored.
    large_batch_size: Positive = 128
    # r: rows picked of them, and trained on by all ranks together.
    sub_batch_size: Positive = 64

    # ---- draw
    # Every source alike, every row alike, or in between by `temperature`.
    sampling: Literal["inverse_source", "uniform", "temperature"] = "inverse_source"
    # A source's share is rows^(1 / temperature): 1 draws rows uniformly, large values draw sources equally.
    temperature: Annotated[float, Field(ge=1)] = 1.0

    # ---- score
    # `central`: the paper's difference of two losses; `jvp`: its limit, in forward mode; `exact`: reverse mode through
    # the last blocks alone.
    estimator: Literal["central", "jvp", "exact"] = "central"
    # `last_blocks` takes all trained linear layers of the last `num_blocks` blocks, as a sketch; `exact` only.
    gradient_of: Literal["v_projection", "last_blocks"] = "v_projection"
    # How many blocks `last_blocks` are.
    num_blocks: Positive = 1
    # Numbers that a row's gradient is held as, with `last_blocks`.
    sketch_size: Positive = 1024
    # How far `central` moves the weights along a probe, either way.
    epsilon: Annotated[float, Field(gt=0)] = 1e-3
    # Random directions of a step, whose estimates are averaged.
    num_probes: Positive = 1
    # Padded tokens of one forward.
    score_tokens: Positive = 8192

    # ---- compare
    # Which coordinates of the estimated gradient are kept: the largest |gradient|, |weight|, or |weight · gradient|.
    criterion: Literal["grad", "weight", "weight_grad"] = "grad"
    # How many coordinates are kept.
    sparsify_k: Positive = 2560
    # Compare what Adam would make of the estimates: divided by the root of their running second moment.
    adam_features: bool = False
    # Of `adam_features`: how much of the first moment remains after a step.
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    # Of `adam_features`: how much of the second moment remains.
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    # Of `adam_features`: what is added to the second moment's root.
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    # Append the prompt's mean hidden state to what is compared: for unknown sources.
    soft_labels: bool = False
    # Of soft labels: their spread, as a fraction of the gradients'.
    soft_label_scale: Annotated[float, Field(gt=0)] = 1.0

    # ---- pick
    # `matching_pursuit` weighs rows so that their gradients add up to the large batch's. `local_pivotal`, `cube` and
    # `clusters` are unbiased sampling designs, weighted by 1 / probability. `random`, `random_stratified` (by source)
    # and `loss` (the largest) are baselines; the random ones score nothing.
    pick: Literal[
        "facility_location",
        "matching_pursuit",
        "local_pivotal",
        "cube",
        "clusters",
        "random",
        "random_stratified",
        "loss",
    ] = "facility_location"
    # Facility location source by source: each gets its share of the sub-batch, or an equal part of it.
    quotas: Literal["none", "proportional", "balanced"] = "none"
    # Keep every drawn row of the sources that hold less than an average source's share of the data.
    keep_small_sources: bool = False
    # `gamma`: a pick weighs as many rows as it stands for.
    weighting: Literal["none", "gamma"] = "none"
    # Of a sampling design: all rows alike, or `norm_share` of the probability in proportion to the gradient's norm.
    inclusion: Literal["equal", "norm"] = "equal"
    # Of inclusion `norm`: the rest of the probability goes to all rows alike.
    norm_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    # Of matching pursuit: how strongly weights are held back, relative to the rows' mean squared gradient norm.
    ridge: Annotated[float, Field(gt=0)] = 0.03
    # Of matching pursuit: how much of what earlier steps' picks left out is added to the next target; 0: nothing.
    feedback: Annotated[float, Field(ge=0, le=1)] = 0.6
    # Of what was left out, how much remains after every step.
    feedback_decay: Annotated[float, Field(gt=0, le=1)] = 0.99

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = PRESETS.get(str(given.get("preset", "paper")), {})
        # Another way to score or to pick than the preset's leaves what belongs to the preset's own behind.
        for choice, details in _DETAILS.items():
            if choice in given and given[choice] != preset.get(choice, cls.model_fields[choice].default):
                preset = {key: value for key, value in preset.items() if key not in details}
        return preset | given

    @model_validator(mode="after")
    def _sub_batch_fits(self) -> SelectionConfig:
        if self.sub_batch_size > self.large_batch_size:
            raise ValueError(
                f"sub_batch_size {self.sub_batch_size} is larger than large_batch_size {self.large_batch_size}: "
                "a sub-batch is picked from the large batch, so lower the first or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _choices_go_together(self) -> SelectionConfig:
        if self.gradient_of == "last_blocks":
            if self.estimator != "exact":
                raise ValueError(f"gradient_of 'last_blocks' goes with estimator 'exact', not {self.estimator!r}")
            if self.adam_features or self.criterion != "grad":
                raise ValueError(
                    "gradient_of 'last_blocks' is compared as a sketch, which has no coordinates to normalise or "
                    f"choose: leave adam_features (given {self.adam_features}) and criterion (given "
                    f"{self.criterion!r}) at their defaults, or use 'v_projection'"
                )
        if self.pick == "matching_pursuit" and (self.adam_features or self.soft_labels or self.criterion != "grad"):
            raise ValueError(
                f"pick 'matching_pursuit' adds up gradients, which adam_features (given {self.adam_features}), "
                f"soft_labels (given {self.soft_labels}) and criterion (given {self.criterion!r}) make something else "
                "of: leave them at their defaults, or pick with facility_location"
            )
        by_medoids = self.quotas != "none" or self.weighting != "none" or self.keep_small_sources
        if self.pick != "facility_location" and by_medoids:
            raise ValueError(
                f"quotas {self.quotas!r}, weighting {self.weighting!r} and keep_small_sources "
                f"{self.keep_small_sources} are of pick 'facility_location', not of {self.pick!r}: leave them out"
            )
        return self

    @property
    def scores(self) -> bool:
        """Whether rows are scored, hence whether the selector needs the trainers' weights."""
        return self.pick not in ("random", "random_stratified")

    @property
    def keeps_history(self) -> bool:
        """Whether a selection depends on what earlier steps' selections found, not on its weights and rows alone."""
        return self.feeds_back or (self.adam_features and self.scores and self.pick != "loss")

    @property
    def feeds_back(self) -> bool:
        """Whether what a step's picks left unmatched is added to the next step's target."""
        return self.pick == "matching_pursuit" and self.feedback > 0
