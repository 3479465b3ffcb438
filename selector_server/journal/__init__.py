"""The durable memory of runs: what is on disk before anybody is told of it, and what proves it whole."""

from selector_server.journal.reader import JournalReader
from selector_server.journal.writer import Journal

__all__ = ["Journal", "JournalReader"]
