"""One pass over the rows of the data: conversations of those that can be used, encoded, into a spill."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from selector_server.encoding import Encoder, encode_all
from selector_server.layout import CONVERSATIONS, Columns, conversation, text_of
from selector_server.parts import Part
from selector_server.readers import Rows, read
from selector_server.reading import Reading
from selector_server.spill import Spill
from shared.chat import Message, Refused
from shared.errors import DataError

Found = TypeVar("Found")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Origin:
    """Where a row of a batch comes from."""

    number: int
    source: str
    part: str


def read_all(parts: Sequence[Part], revision: str | None, cache: Path) -> Iterator[tuple[Part, Rows]]:
    """All rows, a batch at a time, each with the part that it is of."""
    for part in parts:
        for rows in read(part, revision=revision, cache=cache):
            yield part, rows


def find_columns(
    batches: Iterator[tuple[Part, Rows]], reading: Reading
) -> tuple[Columns | None, Iterator[tuple[Part, Rows]]]:
    """Which columns are what, by the first rows, None where there are no rows; and all rows again."""
    first = next(batches, None)
    if first is None:
        return None, batches
    columns, found = reading.named, _names(first[1])
    if reading.columns is None and not {columns.instruction, columns.output} <= set(found):
        columns = replace(columns, messages=next((name for name in CONVERSATIONS if name in found), None))
    return columns, chain([first], batches)


def _names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


class Filling:
    """One pass over the rows of the data, into a spill."""

    def __init__(self, spill: Spill, columns: Columns, sources: Mapping[Part, str], reading: Reading) -> None:
        self._spill, self._columns, self._sources, self._reading = spill, columns, sources, reading
        self.refused = 0

    def fill(
        self, batches: Iterator[tuple[Part, Rows]], encoder: Encoder, num_proc: int | None, told: Callable[[], object]
    ) -> None:
        """Encode all rows; `told` is called after each batch."""
        for origins, rows in encode_all(self._conversations(batches), encoder, num_proc=num_proc):
            for origin, row in zip(origins, rows, strict=True):
                self._spill.add(origin.source, origin.number, self._usable(origin, row))
            told()

    def _conversations(
        self, batches: Iterator[tuple[Part, Rows]]
    ) -> Iterator[tuple[list[_Origin], list[Sequence[Message]]]]:
        """The rows that have a conversation; the others are dropped here."""
        number, checked = 0, None
        for part, rows in batches:
            if part is not checked:
                self._columns.require(_names(rows), of=part.name)
                checked = part
            origins: list[_Origin] = []
            conversations: list[Sequence[Message]] = []
            for row in rows:
                origin = _Origin(number, self._source(number, row, part), part.name)
                found = self._usable(origin, conversation(row, self._columns, of=part.name, tools=self._reading.tools))
                if found is None:
                    self._spill.add(origin.source, number, None)
                else:
                    origins.append(origin)
                    conversations.append(found)
                number += 1
            if conversations:
                yield origins, conversations

    def _source(self, number: int, row: Mapping[str, Any], part: Part) -> str:
        if self._columns.source is None:
            return self._sources[part]
        name = text_of(row, self._columns.source, of=part.name)
        if not name.strip():
            given = row.get(self._columns.source)
            raise DataError(f"row {number} has no source ({given!r}): name the source of every row")
        return name

    def _usable(self, origin: _Origin, found: Found | Refused | None) -> Found | None:
        """What was found, unless it was refused.

        Raises:
            DataError: it was, and that ends it.
        """
        if not isinstance(found, Refused):
            return found
        if not self._reading.drop_refused:
            raise DataError(
                f"row {origin.number}, of {origin.part}, can't be used: {found.reason}; --drop-refused drops such rows"
            )
        if not self.refused:
            _logger.warning("row %d, of %s, is dropped, as others may be: %s", origin.number, origin.part, found.reason)
        self.refused += 1
        return None
