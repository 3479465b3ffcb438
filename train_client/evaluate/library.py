"""The modules that a jailed program can import, which can't read files: all are in memory before it starts.

Some are imported ahead of every program (`PRELOADED`). Of the standard library and of `HELD` packages every other
module is held as the bytes of its file and its bytecode, since these packages import many of theirs only when a
function needs them (sympy alone has 800, ten seconds' worth). Extension modules can't be held, so those that matter
are among the preloaded. Any other import is a `ModuleNotFoundError` that says what there is.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, SourceFileLoader
from importlib.util import cache_from_source, find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

HELD = ("sympy", "mpmath", "numpy", "scipy")
PRELOADED = (
    *("array", "bisect", "calendar", "cmath", "collections", "copy", "csv", "ctypes", "dataclasses", "datetime"),
    *("decimal", "enum", "fractions", "functools", "hashlib", "heapq", "itertools", "json", "math", "numbers"),
    *("operator", "queue", "random", "re", "secrets", "select", "socket", "statistics", "string", "struct"),
    *("subprocess", "textwrap", "threading", "time", "typing", "unicodedata", "zlib", "zoneinfo"),
    *("numpy", "numpy.fft", "numpy.linalg", "numpy.ma", "numpy.polynomial", "numpy.random"),
    *("scipy.constants", "scipy.integrate", "scipy.interpolate", "scipy.linalg", "scipy.optimize", "scipy.special"),
    *(
        "scipy.signal",
        "scipy.stats",
        "sympy",
        "sympy.combinatorics",
        "sympy.parsing.sympy_parser",
        "sympy.sets.setexpr",
    ),
    *("sympy.solvers.ode", "sympy.stats", "sympy.tensor.tensor"),
)
_LEFT_OUT = {"test", "tests", "benchmarks", "idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip"} | {
    *("site-packages", "dist-packages", "lib-dynload", "__pycache__")
}


class _HeldLoader(SourceFileLoader):
    """Loads a module as from its file, with what was read before."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, str(path))
        self._stats = super().path_stats(str(path))
        self._bytes = {str(path): path.read_bytes()}
        cached = cache_from_source(str(path))
        with suppress(FileNotFoundError):
            self._bytes[cached] = Path(cached).read_bytes()

    def path_stats(self, path: str) -> dict[str, float]:
        return dict(self._stats)

    def get_data(self, path: str) -> bytes:
        try:
            return self._bytes[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def set_data(self, path: str, data: bytes, *, _mode: int = 0) -> None:  # type: ignore[override]
        """Bytecode that a program compiles ends with it."""


class _Library:
    """A finder of the held modules, in `sys.meta_path` the last."""

    def __init__(self, loaders: dict[str, _HeldLoader]) -> None:
        self._loaders = loaders

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if (loader := self._loaders.get(name)) is None:
            packages = ", ".join(package for package in HELD if package in sys.modules)
            raise ModuleNotFoundError(
                f"No module named {name!r} (programs have the standard library, {packages})", name=name
            )
        return spec_from_file_location(name, loader.path, loader=loader)


def preload() -> None:
    """Import `PRELOADED` where installed, and let later imports find only what is held in memory."""
    for name in PRELOADED:
        with suppress(ImportError):
            importlib.import_module(name)
    loaders = {name: _HeldLoader(name, path) for name, path in _modules(Path(sysconfig.get_path("stdlib")), prefix="")}
    for package in HELD:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            root = Path(spec.origin).parent
            loaders |= {name: _HeldLoader(name, path) for name, path in _modules(root, prefix=f"{package}.")}
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, _Library(loaders)]


def _modules(root: Path, *, prefix: str) -> Iterator[tuple[str, Path]]:
    """Names and files of a folder's modules, tests left out."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and name.isidentifier()]
        for file in files:
            path = Path(folder, file)
            if path.suffix == ".py" and path.stem.isidentifier():
                parts = path.relative_to(root).with_suffix("").parts
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                yield (prefix + name).rstrip("."), path
