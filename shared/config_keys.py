"""The configuration tree as a list: what completion offers and the reference page describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shared.branch import Branch
from shared.config import Config

Place = tuple[str, ...]


def branches(of: type[BaseModel] = Config, at: Place = ()) -> Iterator[tuple[Place, type[Branch]]]:
    """Every branch of the tree and where it is, in the tree's order; one that is used in two places comes twice."""
    for name, field in of.model_fields.items():
        for inner in branches_in(field.annotation):
            yield (*at, name), inner
            yield from branches(inner, (*at, name))


def keys() -> Iterator[tuple[str, FieldInfo]]:
    """Every key that holds a value, as `branch.key`."""
    for at, branch in branches():
        for name, field in branch.model_fields.items():
            if not branches_in(field.annotation):
                yield ".".join((*at, name)), field


def branches_in(annotation: Any) -> list[type[Branch]]:
    """The branches that a field may hold: itself, or those of a union such as `TlsConfig | None`."""
    kinds = (annotation, *get_args(annotation))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Branch)]
