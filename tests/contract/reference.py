"""Write the reference pages of deploy/docs from the code they describe, or prove with --check that they still match.

Three pages: the configuration's keys, from the tree and the comments above each key; the metrics, from the modules that
list them; the protocol, from the comments in proto/.
"""

from __future__ import annotations

import argparse
import inspect
import io
import sys
import tempfile
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import grpc_tools
from annotated_types import Ge, Gt, Le, Lt
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import selector_server.metrics
import train_client.metrics
from shared.branch import Branch
from shared.config_keys import branches, branches_in
from shared.metric import Metric

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "deploy" / "docs"
_BOUNDS = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
_KINDS = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path"}
_FIELD = FieldDescriptorProto
_WRITTEN = "<!-- Written by `make reference` from {source}; change it there. -->\n"


def pages() -> Mapping[str, str]:
    """Every generated page, by its file name."""
    return {"configuration.md": _configuration(), "metrics.md": _metrics(), "protocol.md": _protocol()}


# ---- configuration


def comments_above(source: str) -> Mapping[int, str]:
    """The comment that stands right above a line, by that line's number, without headings (`# ---- such`)."""
    lines: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
            lines[token.start[0]] = token.string.lstrip("# ")
    above: dict[int, str] = {}
    for number in sorted(lines):
        said = [] if lines[number].startswith("----") else [lines[number]]
        above[number + 1] = " ".join([above.pop(number, ""), *said]).strip()
    return above


def meanings(branch: type[BaseModel]) -> Mapping[str, str]:
    """What each key of a branch means: the comment above it."""
    source = inspect.getsource(branch)
    above = comments_above(source)
    found = {}
    for number, line in enumerate(source.splitlines(), 1):
        name, colon, _ = line.strip().partition(": ")
        if colon and name in branch.model_fields and line.startswith("    ") and not line.startswith("     "):
            found[name] = above.get(number, "")
    return found


def _configuration() -> str:
    places: dict[type[Branch], list[str]] = {}
    for at, branch in branches():
        places.setdefault(branch, []).append(".".join(at))
    parts = [
        _WRITTEN.format(source="the configuration's modules, `shared/*config.py`"),
        "# Configuration\n",
        "One tree, for the server and for the trainers, read from a TOML file (`--config FILE`, or the one that",
        "`SUBBATCH_CONFIG` names), then from the environment, then from the command line; what comes later wins. A key",
        "`num_steps` of `[run]` is `SUBBATCH_RUN__NUM_STEPS` in the environment and `--run.num_steps` on the command",
        "line: two underscores, or a dot, for every level. An unknown key or an impossible value is an error that",
        "names the nearest known key. Relative paths begin at the working directory. `--dry-run` prints the tree as it",
        "was read, and where each value came from.\n",
        "Tokens are no part of the tree, so that nothing that prints it can show them: `SUBBATCH_TOKENS` (server) and",
        "`SUBBATCH_TOKEN` (trainers), or the files that `token_file` names.\n",
    ]
    for branch, names in places.items():
        parts += [f"## {' and '.join(f'[{name}]' for name in names)}\n", f"{inspect.getdoc(branch)}\n"]
        parts += ["| key | takes | default | meaning |", "|---|---|---|---|"]
        said = meanings(branch)
        for key, field in branch.model_fields.items():
            variables = "<br>".join(f"`{_variable(name, key)}`" for name in names)
            default = "see below" if branches_in(field.annotation) and field.default else _default(field.default)
            parts.append(f"| `{key}`<br>{variables} | {_takes(field)} | {default} | {_cell(said.get(key, ''))} |")
        parts.append("")
    return "\n".join(parts)


def _variable(place: str, key: str) -> str:
    return "__".join(["SUBBATCH_" + place.replace(".", "__").upper(), key.upper()])


def _takes(field: FieldInfo) -> str:
    return _cell(_kind(field.annotation, field.metadata))


def _kind(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _kind(inner, [*more, *metadata])
    if origin is Literal:
        return " or ".join(
            f"`{str(value).lower() if isinstance(value, bool) else value}`" for value in get_args(annotation)
        )
    if origin is tuple:
        return f"list: {_kind(get_args(annotation)[0])}"
    if origin is Union or origin is type(int | None):
        return " or ".join(_kind(each, metadata) for each in get_args(annotation) if each is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, Branch):
        return "a branch"
    if annotation not in _KINDS:
        raise TypeError(f"the reference doesn't know how to describe {annotation}: say it in _KINDS")
    return _KINDS[annotation] + "".join(_bounds(metadata))


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    for item in (inner for each in metadata for inner in getattr(each, "metadata", [each])):
        if type(item) in _BOUNDS:
            sign, name = _BOUNDS[type(item)]
            yield f", {sign} {getattr(item, name)}"
        elif pattern := getattr(item, "pattern", None):
            yield f" that matches `{pattern}`"


def _default(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return _cell("`[" + ", ".join(f'"{each}"' if isinstance(each, str) else str(each) for each in value) + "]`")
    return f'`"{value}"`' if isinstance(value, (str, Path)) else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# ---- metrics


def _metrics() -> str:
    parts = [
        _WRITTEN.format(source="`selector_server/metrics.py` and `train_client/metrics.py`"),
        "# Metrics\n",
        "Both ends export Prometheus metrics where `server.metrics.port` and `client.metrics.port` are set; rank 0",
        "does for a training job. `selector-server metrics` and `train-client metrics` print these lists, with",
        "`--json` for programs. A histogram is scraped as `NAME_bucket`, `NAME_sum` and `NAME_count`. What to watch",
        "and when to be woken is in `deploy/prometheus/subbatch-rules.yml`; `deploy/grafana` draws them.\n",
    ]
    for title, module in (("Server", selector_server.metrics), ("Training job", train_client.metrics)):
        parts += [f"## {title}\n", f"{_after_first_line(module)}\n"]
        parts += ["| name | kind | labels | what a value is |", "|---|---|---|---|"]
        parts += [_metric(metric) for metric in module.METRICS]
        parts.append("")
    return "\n".join(parts)


def _metric(metric: Metric) -> str:
    labels = "<br>".join(_cell(metric.label_in_words(label).replace("|", ", ")) for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {_cell(metric.help)} |"


def _after_first_line(module: ModuleType) -> str:
    return (inspect.getdoc(module) or "").partition("\n")[2].strip()


# ---- protocol


def _protocol() -> str:
    parts = [
        _WRITTEN.format(source="`proto/shared/pb/v1/*.proto`"),
        "# Protocol\n",
        "gRPC between a selector server and the ranks of a training job, and the records of a run's journal. Server",
        "reflection is on: `grpcurl` lists the same. Fields are added, never renumbered. Health is asked for with",
        "gRPC's own `grpc.health.v1.Health`; for service `subbatch.v1.SelectorService` it is readiness.\n",
    ]
    for file in _descriptors():
        said = _said(file)
        parts += [f"## {Path(file.name).name}\n", said.get((12,), said.get((2,), "")) + "\n"]
        for number, service in enumerate(file.service):
            parts += [f"### Service {service.name}\n", "| call | takes | gives | |", "|---|---|---|---|"]
            for index, method in enumerate(service.method):
                takes = _streamed(method.input_type, streams=method.client_streaming)
                gives = _streamed(method.output_type, streams=method.server_streaming)
                parts.append(f"| `{method.name}` | {takes} | {gives} | {_cell(said.get((6, number, 2, index), ''))} |")
            parts.append("")
        for number, message in enumerate(file.message_type):
            parts += _message(message, (4, number), said)
        for number, enum in enumerate(file.enum_type):
            parts += _enum(enum, (5, number), said)
    return "\n".join(parts)


def _message(message: Any, at: tuple[int, ...], said: Mapping[tuple[int, ...], str], inside: str = "") -> list[str]:
    parts = [f"### {inside}{message.name}\n"]
    if text := said.get(at):
        parts.append(text + "\n")
    entries = {each.name: each for each in message.nested_type if each.options.map_entry}
    if message.field:
        parts += ["| field | number | type | |", "|---|---:|---|---|"]
    for index, field in enumerate(message.field):
        text = _cell(said.get((*at, 2, index), ""))
        parts.append(f"| `{field.name}` | {field.number} | {_field_type(field, entries)} | {text} |")
    if message.field:
        parts.append("")
    elif not said.get(at):
        parts.append("Empty.\n")
    for index, enum in enumerate(message.enum_type):
        parts += _enum(enum, (*at, 4, index), said, inside=f"{inside}{message.name}.")
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            parts += _message(nested, (*at, 3, index), said, inside=f"{inside}{message.name}.")
    return parts


def _enum(enum: Any, at: tuple[int, ...], said: Mapping[tuple[int, ...], str], inside: str = "") -> list[str]:
    rows = [
        f"| `{value.name}` | {value.number} | {_cell(said.get((*at, 2, index), ''))} |"
        for index, value in enumerate(enum.value)
    ]
    return [f"### {inside}{enum.name}\n", "| value | number | |", "|---|---:|---|", *rows, ""]


def _field_type(field: Any, entries: Mapping[str, Any]) -> str:
    name = _type_name(field)
    if entry := entries.get(name):
        return f"map of {_type_name(entry.field[0])} to {_type_name(entry.field[1])}"
    if field.label == _FIELD.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _type_name(field: Any) -> str:
    if field.type_name:
        return str(field.type_name.rpartition(".")[2])
    return str(_FIELD.Type.Name(field.type).removeprefix("TYPE_").lower())


def _streamed(name: str, *, streams: bool) -> str:
    return f"{'stream of ' if streams else ''}`{name.rpartition('.')[2]}`"


def _said(file: FileDescriptorProto) -> Mapping[tuple[int, ...], str]:
    """Comments by where in the file they stand, in the descriptor's own numbering; line breaks are the author's."""
    said = {}
    for location in file.source_code_info.location:
        detached = "\n\n".join(location.leading_detached_comments) if tuple(location.path) in {(2,), (12,)} else ""
        texts = [detached, location.leading_comments, location.trailing_comments]
        if text := "\n".join(text for text in texts if text.strip()):
            said[tuple(location.path)] = "\n".join(_shown(line) for line in text.strip("\n").splitlines())
    return said


def _shown(line: str) -> str:
    """A line of a comment; those that are indented are code."""
    return f"    {line.strip()}" if line.startswith("   ") else line.strip()


def _descriptors() -> list[FileDescriptorProto]:
    sources = sorted((ROOT / "proto").rglob("*.proto"), reverse=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors"
        well_known = Path(grpc_tools.__file__).parent / "_proto"
        paths = [f"-I{ROOT / 'proto'}", f"-I{well_known}"]
        if protoc.main(["protoc", *paths, "--include_source_info", f"--descriptor_set_out={out}", *map(str, sources)]):
            sys.exit("protoc failed")
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def main() -> None:
    """Write the pages, or compare them with what would be written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page differs from the code")
    check = parser.parse_args().check
    unsaid = [
        f"{'.'.join(at)}.{key}" for at, branch in branches() for key, text in meanings(branch).items() if not text
    ]
    if unsaid:
        sys.exit(f"no comment above {', '.join(unsaid)}: say there what the key means")
    stale = []
    for name, text in pages().items():
        page = DOCS / name
        if not check:
            page.write_text(text, encoding="utf-8")
        elif not page.is_file() or page.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        sys.exit(f"deploy/docs differs from the code: {', '.join(stale)}; run `make reference` and commit the result")


if __name__ == "__main__":
    main()
