"""What was named on the command line in, the files to read out: paths, folders, globs, URLs and datasets of the hub.

Files elsewhere (`s3://`, `gs://`, `hf://`, `https://`, and whatever else fsspec knows) are read where they are.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from shared.errors import DataError
from shared.tokenizer import HUB_ID

_TEXTS, _COMPRESSIONS = (".json", ".jsonl", ".ndjson"), ("", ".gz", ".zst")
_ENDINGS = (*(kind + packed for kind in _TEXTS for packed in _COMPRESSIONS), ".parquet")
# What has to be installed for a protocol, as an extra of this package.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
_SHOWN_ENDINGS = ".json, .jsonl (either also .gz or .zst), .parquet"


@dataclass(frozen=True)
class Part:
    """A file, or a dataset of the hub.

    Attributes:
        name: For people.
        path: Where it is, in `files`; the id of a dataset.
        files: The file system; None for a dataset.
    """

    name: str
    path: str
    files: Any = None


def find_parts(named: Sequence[str]) -> list[Part]:
    """The parts of everything that was named, in the order of the names; files of a folder or glob by their paths.

    Raises:
        DataError: nothing there, nothing there that can be read, or a package is missing.
    """
    return [part for each in named for part in (_remote(each) if "://" in each else _local(each))]


def source_names(parts: Sequence[Part], *, by: str) -> list[str]:
    """What the parts are called as sources.

    Args:
        parts: The parts.
        by: `file`: paths below the folder that the files share; `folder`: those of the folders that they are in. A
            dataset of the hub is called by its id.
    """
    paths = {part: part.path.partition("?")[0].replace(os.sep, "/") for part in parts if part.files is not None}
    folders = [os.path.dirname(path) for path in paths.values()]
    share = len({os.path.isabs(folder) for folder in folders}) == 1
    shared = os.path.commonpath(folders) if share else ""

    def below(path: str) -> str:
        return os.path.relpath(path, shared) if shared else path

    def name(part: Part) -> str:
        if part.files is None:
            return part.path
        if by == "file":
            return below(paths[part])
        folder = os.path.dirname(paths[part])
        return os.path.basename(folder) if below(folder) == "." else below(folder)

    return [name(part) for part in parts]


def _is_readable(path: str) -> bool:
    return path.lower().endswith(_ENDINGS)


def _local(name: str) -> list[Part]:
    path, files = Path(name).expanduser(), fsspec.filesystem("file")
    if path.is_dir():
        shown = [f for f in path.rglob("*") if not any(part.startswith(".") for part in f.relative_to(path).parts)]
        found = sorted(f for f in shown if _is_readable(f.name) and f.is_file())
        if not found:
            raise DataError(f"folder {name} holds no file that ends in {_SHOWN_ENDINGS}: give one that does")
    elif path.exists():
        if not _is_readable(path.name):
            raise DataError(
                f"{name} ends in {path.suffix or 'nothing'}, prepare reads {_SHOWN_ENDINGS}: convert the file"
            )
        found = [path]
    elif glob.has_magic(name):
        found = sorted(Path(f) for f in glob.glob(str(path), recursive=True) if _is_readable(f) and Path(f).is_file())
        if not found:
            raise DataError(f"{name} matches no file that ends in {_SHOWN_ENDINGS}: check the pattern")
    elif _is_readable(name) or not HUB_ID.fullmatch(name):
        raise DataError(
            f"{name} does not exist: give a file ({_SHOWN_ENDINGS}), a folder of them, a pattern, a URL, or a "
            "dataset's id"
        )
    else:
        return [Part(name, name)]
    return [Part(str(f), str(f.resolve()), files) for f in found]


def _remote(url: str) -> list[Part]:
    protocol, shown_url = url.partition("://")[0], without_query(url)
    try:
        files, path = fsspec.core.url_to_fs(url)
        if protocol in ("http", "https"):  # which have no folders, and where ? begins a query
            found = [path]
        elif glob.has_magic(path):
            found = sorted(files.glob(path))
        else:
            found = sorted(files.find(path)) if files.isdir(path) else [path]
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        how = f"pip install 'subbatch[{extra}]'" if extra else "install it"
        raise DataError(f"{protocol}:// needs a package that isn't here ({error}): {how}") from error
    except Exception as error:  # whatever the file system and its network raise
        raise DataError(
            f"{shown_url} can't be reached ({reason(error, at=url)}): check the address and who may read it"
        ) from error
    readable = [each for each in found if _is_readable(each.partition("?")[0])]
    if not readable:
        raise DataError(f"{shown_url} names no file that ends in {_SHOWN_ENDINGS}: give one that does")
    shown = [each.removeprefix(f"{protocol}://").partition("?")[0] for each in readable]
    return [Part(f"{protocol}://{name}", each, files) for name, each in zip(shown, readable, strict=True)]


def without_query(url: str) -> str:
    """A URL without what follows a ?, which is often a signature; anything else as it is."""
    return url.partition("?")[0] if "://" in url else url


def reason(error: BaseException, *, at: str = "") -> str:
    """What went wrong at a path or URL, on one line, without the URL's query."""
    text = re.sub(r"\?[^\s'\")]*", "", str(error)) if "://" in at and "?" in at else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__
