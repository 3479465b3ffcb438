"""How rows are read, as `selector-server prepare` is told: which columns are what, and what becomes of turns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from selector_server.layout import Columns


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    Attributes:
        columns: Which columns are what; None: `instruction` and `output` or, where the data has one and not those,
            `messages` or `conversations`.
        source_column: Where a row comes from, if `sources_by` is `column`.
        sources_by: What tells sources apart.
        template: Around an instruction: `alpaca`, or `chat`, the tokenizer's own; conversations have always that.
        system: The first turn of conversations that have no system's.
        train_on: Which of the assistant's turns have a loss.
        tools: Leave turns of tools to the template; else conversations with any are refused.
        drop_refused: Drop and count what is refused; else that ends it.
    """

    columns: Columns | None = None
    source_column: str = "source"
    sources_by: Literal["column", "file", "folder"] = "column"
    template: Literal["alpaca", "chat"] = "alpaca"
    system: str | None = None
    train_on: Literal["all", "last"] = "all"
    tools: bool = False
    drop_refused: bool = False

    @property
    def named(self) -> Columns:
        """The columns, as far as they are known before the data is seen."""
        source = self.source_column if self.sources_by == "column" else None
        return replace(self.columns or Columns(), source=source)
