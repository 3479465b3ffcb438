"""Checkpoints of the reference loop: whole or not there at all."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

_NAME = re.compile(r"checkpoint-(\d+)")


def save_checkpoint(accelerator: Any, output: Path, step: int) -> Path:
    """Save Accelerate's state, the run's cursor included, as `output/checkpoint-<step>`.

    It is written beside and renamed at the end, so that a killed job leaves no checkpoint that looks whole.
    """
    final = output / f"checkpoint-{step}"
    part, old = final.with_suffix(".part"), final.with_suffix(".old")
    if accelerator.is_main_process:
        shutil.rmtree(part, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(part))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if final.exists():
            os.replace(final, old)
        os.replace(part, final)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    return final


def latest_checkpoint(output: Path, *, holding: str = "") -> Path | None:
    """The newest whole checkpoint in `output`, or None; `holding` names a file that makes a folder whole."""
    folders = [path for path in output.glob("checkpoint-*") if (path / holding).exists()]
    found = [(int(m.group(1)), path) for path in folders if (m := _NAME.fullmatch(path.name))]
    return max(found)[1] if found else None
