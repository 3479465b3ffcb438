"""Who makes the call at hand."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

# The name of the token that may see and do everything about every run.
ADMIN = "admin"


@dataclass(frozen=True)
class Caller:
    """The owner of a token; nameless where a server has no tokens, so that anybody may do anything."""

    name: str = ""

    def may_touch(self, owner: str) -> bool:
        """Whether the runs of an owner are this caller's to see and change; those without an owner are everybody's."""
        return self.name in ("", ADMIN, owner) or not owner


_NOBODY = Caller()
_CURRENT: ContextVar[Caller] = ContextVar("caller", default=_NOBODY)


def current_caller() -> Caller:
    """Who makes the call that runs here."""
    return _CURRENT.get()


def set_caller(caller: Caller) -> None:
    """Say who makes the call that runs here, which is a task of its own."""
    _CURRENT.set(caller)
