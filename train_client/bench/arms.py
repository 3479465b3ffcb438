"""The arms of `bench overlap`: ways to train that differ in who selects, when, and with how old weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.config import Config
from shared.selection_config import SelectionConfig
from train_client.run_config import with_values

FLOOR, LARGE_BATCH, INLINE, DEFAULT = "floor", "large_batch", "inline", "staleness_1"


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: Its key in results.
        title: For tables and pictures.
        timing: S and K, where something is selected.
        served: Whether a selector server works for it.
    """

    name: str
    title: str
    timing: tuple[int, int] | None = None
    served: bool = False

    @property
    def devices(self) -> int:
        """How many devices it holds."""
        return 1 + self.served

    @property
    def push_every(self) -> int:
        """Steps from one push to the next, where something is pushed; else 1."""
        return self.timing[1] if self.timing else 1

    def config(self, base: Config, *, recording: Path) -> Config:
        """The base configuration with what makes this arm.

        Args:
            base: What all arms share.
            recording: The `train.output` of the run whose rows the floor trains on again.

        Raises:
            ValidationError: values that don't go together.
        """
        values: dict[str, Any] = {"run.name": self.name.replace("_", "-"), "run.lookahead": None, "client.replay": None}
        if self.timing:
            values["run.staleness"], values["run.push_every"] = self.timing
        if self.name == FLOOR:
            values |= {"client.selector": "replay", "client.replay": recording}
        if self.name == LARGE_BATCH:
            values |= {"client.selector": "inline", "selection": _all_rows(base.selection)}
        if self.name == INLINE:
            values |= {"client.selector": "inline"}
        selection = values.pop("selection", None)
        tree: Mapping[str, Any] = base.model_dump()
        return with_values(tree if selection is None else {**tree, "selection": selection}, values)


def _all_rows(selection: SelectionConfig) -> dict[str, Any]:
    """The same draws, and every row of them; nothing is scored."""
    size = selection.large_batch_size
    kept = selection.model_dump(include={"sampling", "temperature"})
    return {**kept, "pick": "random", "large_batch_size": size, "sub_batch_size": size}


ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(FLOOR, "r rows, given"),
        Arm(DEFAULT, "server, S = 1", (1, 1), served=True),
        Arm(INLINE, "selected in trainer", (0, 1)),
        Arm(LARGE_BATCH, "all b rows"),
        Arm("staleness_0", "server, S = 0", (0, 1), served=True),
        Arm("staleness_2", "server, S = 2", (2, 1), served=True),
        Arm("push_every_2", "server, S = 1, K = 2", (1, 2), served=True),
        Arm("push_every_4", "server, S = 1, K = 4", (1, 4), served=True),
    )
}
# What a sweep over r / b compares.
MAIN = (FLOOR, DEFAULT, INLINE, LARGE_BATCH)
