"""The frozen records that cross seams: a row of the store, a selection, a run's identity."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shared.selection_config import SelectionConfig
from shared.timing import Timing


@dataclass(frozen=True)
class Row:
    """One tokenised example: a prompt and its answer, or a conversation of several.

    Attributes:
        input_ids: Prompt then answer, int32 [num_tokens]; may be a view of mapped memory.
        num_prompt_tokens: How many leading tokens are prompt, without a loss.
        mask_edges: Where the loss stops and starts again behind the prompt, in turns, int32, each above the one before
            and below num_tokens. Empty where all that follows the prompt is its answer.
    """

    input_ids: npt.NDArray[np.int32]
    num_prompt_tokens: int
    mask_edges: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, dtype=np.int32))

    def is_sound(self, *, max_token_id: int) -> bool:
        """Whether a store with this largest token can hold it; a model would answer what isn't with an index error."""
        edges = [-1, self.num_prompt_tokens, *self.mask_edges.tolist(), len(self.input_ids)]
        return (
            all(a < b for a, b in itertools.pairwise(edges))
            and 0 <= int(self.input_ids.min())
            and int(self.input_ids.max()) <= max_token_id
        )

    def loss_mask(self) -> npt.NDArray[np.bool_]:
        """Which tokens are answer, the only ones with a loss, bool [num_tokens]."""
        mask = np.zeros(len(self.input_ids), dtype=np.bool_)
        mask[self.num_prompt_tokens :] = True
        for edge in self.mask_edges.tolist():
            np.logical_not(mask[edge:], out=mask[edge:])
        return mask


@dataclass(frozen=True, eq=False)
class Selection:
    """The sub-batch of one step. All arrays have length r, in pick order.

    Attributes:
        index: Row numbers in the store, int64.
        source: Source numbers in the store's manifest, int32.
        weight: Loss weights w_i; the step's loss is Σ w_i L_i / large_batch_size, float32.
        gain: Marginal gain of each pick, float32.
        num_tokens: Row lengths, int32.
        skipped: Rows of the large batch whose loss isn't finite, which are never picked; numbers in the store, int64,
            as many as there are.
    """

    run: str
    step: int
    weights_version: int
    large_batch_size: int
    index: npt.NDArray[np.int64]
    source: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float32]
    gain: npt.NDArray[np.float32]
    num_tokens: npt.NDArray[np.int32]
    fallback: bool = False
    skipped: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(frozen=True)
class PhaseTimes:
    """When the selector began a selection, the seconds each phase took, and what it held.

    Attributes:
        receive_seconds: From the first byte of a push to durable, while other selections may be made; in the first
            selection that uses those weights.
        peak_bytes: The most that PyTorch has held on the selector's accelerator so far; 0 on a processor.
    """

    started_unix_ns: int = 0
    load_seconds: float = 0.0
    draw_seconds: float = 0.0
    score_seconds: float = 0.0
    pick_seconds: float = 0.0
    journal_seconds: float = 0.0
    receive_seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True)
class Fingerprints:
    """What must be equal on both sides. `base_model` maps a dtype to the hash of the weights cast to it."""

    dataset: str
    tokenizer: str
    base_model: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype (torch's name, without `torch.`) of one trainable tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class RunInfo:
    """Everything that decides what is selected, and whose run it is.

    Attributes:
        adapter_json: PEFT's config of the adapter; empty in full fine-tuning.
        owner: The name of the token that opened the run; empty where the server has no tokens.
    """

    name: str
    seed: int
    timing: Timing
    world_size: int
    selection: SelectionConfig
    adapter_json: str
    trainable: tuple[TensorSpec, ...]
    fingerprints: Fingerprints
    owner: str = ""
