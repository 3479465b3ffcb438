"""How both ends tell what they do, metrics apart."""

from __future__ import annotations

from typing import Literal

from shared.branch import Branch


class LogConfig(Branch):
    """How log lines look: for people, or one JSON object each."""

    format: Literal["text", "json"] = "text"
