"""Every error this product raises on purpose, and the one table that carries them over gRPC.

    SubbatchError
    ├── ConfigError            a setting is wrong, or two settings don't go together
    ├── DataError              rows or a store that can't be used
    ├── ModelError             a model, tokenizer or adapter that can't be used
    ├── SelectionError         scoring or picking can't give a sub-batch
    ├── WireError              bytes that aren't what the protocol says
    ├── FingerprintError       trainer and server don't hold the same data, tokenizer or model
    ├── RunExistsError         a new run under a name that is taken
    ├── RunNotFoundError       no such run on this server
    ├── CursorError            a run can't be opened or continued at this step
    ├── StaleIncarnationError  a call of a job that has been replaced
    ├── WeightsError           pushed weights that are refused
    ├── JournalError           the journal can't be read or written
    │   └── StorageFullError   its disk is full, which passes
    ├── LoopError              a training loop that would apply a wrong gradient
    ├── SandboxError           programs of a model can't be confined here, so none is run
    ├── UnauthenticatedError   missing or wrong token
    ├── NotOwnerError          a run that belongs to another token
    ├── LimitError             more than the server takes, or takes at a time
    ├── TooSlowError           a call that sends too little for too long
    └── UnavailableError       the server didn't answer before the deadline

Errors of lower layers are turned into these where they enter: gRPC's in `to_status` and `from_rpc_error` below.
"""

from __future__ import annotations

import grpc

from shared.handshake import connection_trouble

ERROR_KEY = "subbatch-error"
# What outsiders read about an error; each kind has a heading of its own.
HELP_PAGE = "deploy/docs/troubleshooting.md"
# gRPC percent-encodes a message into a header and drops it, with the error's name, where headers exceed 8 KiB.
_MAX_MESSAGE_BYTES = 2000


class SubbatchError(Exception):
    """Base of all errors raised on purpose; its text says what happened, both values, and what to do."""


class ConfigError(SubbatchError):
    """A setting is wrong, or two settings don't go together."""


class DataError(SubbatchError):
    """Rows or a store that can't be used."""


class ModelError(SubbatchError):
    """A model, tokenizer or adapter that can't be used."""


class SelectionError(SubbatchError):
    """Scoring or picking can't give a sub-batch."""


class WireError(SubbatchError):
    """Bytes that aren't what the protocol says."""


class FingerprintError(SubbatchError):
    """Trainer and server don't hold the same data, tokenizer or model."""


class RunExistsError(SubbatchError):
    """A new run under a name that is taken."""


class RunNotFoundError(SubbatchError):
    """No such run on this server."""


class CursorError(SubbatchError):
    """A run can't be opened or continued at this step."""


class StaleIncarnationError(SubbatchError):
    """A call of a job that has been replaced by a newer one under the same run name."""


class WeightsError(SubbatchError):
    """Pushed weights that are refused."""


class JournalError(SubbatchError):
    """The journal can't be read or written."""


class StorageFullError(JournalError):
    """The journal's disk is full. Nothing is lost, and it goes on once there is room, so clients try again."""


class LoopError(SubbatchError):
    """A training loop that would apply a wrong gradient."""


class SandboxError(SubbatchError):
    """Programs can't be confined here, so none was run; or the process that forks them has died."""


class UnauthenticatedError(SubbatchError):
    """Missing or wrong token."""


class NotOwnerError(SubbatchError):
    """A run that belongs to another token."""


class LimitError(SubbatchError):
    """More than the server takes, or takes at a time: one of `server.limits`."""


class TooSlowError(SubbatchError):
    """A call that sends too little for too long."""


class UnavailableError(SubbatchError):
    """The server didn't answer before the deadline."""


def help_link(error: SubbatchError) -> str:
    """Where the documentation explains this kind of error; empty for the base, which says no kind."""
    kind = type(error)
    return "" if kind is SubbatchError else f"{HELP_PAGE}#{kind.__name__.lower()}"


_STATUS: dict[type[SubbatchError], grpc.StatusCode] = {
    SubbatchError: grpc.StatusCode.UNKNOWN,
    ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    DataError: grpc.StatusCode.FAILED_PRECONDITION,
    ModelError: grpc.StatusCode.FAILED_PRECONDITION,
    SelectionError: grpc.StatusCode.INTERNAL,
    WireError: grpc.StatusCode.INVALID_ARGUMENT,
    FingerprintError: grpc.StatusCode.FAILED_PRECONDITION,
    RunExistsError: grpc.StatusCode.ALREADY_EXISTS,
    RunNotFoundError: grpc.StatusCode.NOT_FOUND,
    CursorError: grpc.StatusCode.FAILED_PRECONDITION,
    StaleIncarnationError: grpc.StatusCode.ABORTED,
    WeightsError: grpc.StatusCode.INVALID_ARGUMENT,
    JournalError: grpc.StatusCode.INTERNAL,
    StorageFullError: grpc.StatusCode.UNAVAILABLE,
    LoopError: grpc.StatusCode.INTERNAL,
    SandboxError: grpc.StatusCode.INTERNAL,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    NotOwnerError: grpc.StatusCode.PERMISSION_DENIED,
    LimitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooSlowError: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
}
_BY_NAME = {cls.__name__: cls for cls in _STATUS}

# Only these say nothing about the request itself, so that trying again may help; a server that stops cancels its calls.
RETRYABLE = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED},
)
# How gRPC's details begin where a connection broke, whatever status it then gives: UNKNOWN for bytes that fail TLS.
_BROKEN = "Stream removed"


def to_status(error: SubbatchError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Status code, message and trailing metadata that carry an error to the other side."""
    message = str(error).encode()
    if len(message) > _MAX_MESSAGE_BYTES:
        message = message[:_MAX_MESSAGE_BYTES] + "…".encode()
    return _STATUS[type(error)], message.decode(errors="ignore"), ((ERROR_KEY, type(error).__name__),)


def is_retryable(error: grpc.RpcError) -> bool:
    """Whether a gRPC error tells of the connection or of lateness, not of the request: trying again may help."""
    broken = error.code() is grpc.StatusCode.UNKNOWN and (error.details() or "").startswith(_BROKEN)
    return broken or error.code() in RETRYABLE


def from_rpc_error(error: grpc.RpcError, *, doing: str) -> SubbatchError:
    """Turn a gRPC error into ours: by the name in its trailing metadata, else by its status.

    Args:
        error: What a stub raised.
        doing: What the call was for, in words, for errors that carry no message of ours.
    """
    code, details = error.code(), error.details() or ""
    name = dict(error.trailing_metadata() or ()).get(ERROR_KEY, "")
    if name in _BY_NAME:
        return _BY_NAME[name](details)
    if is_retryable(error):
        return UnavailableError(f"{doing}: {code.name.lower()}: {connection_trouble(details)}")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return UnauthenticatedError(f"{doing}: {details}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:  # gRPC's own, where a message is larger than either side takes
        return LimitError(f"{doing}: {details}: ask for less at a time, or raise server.limits")
    return WireError(f"{doing}: unexpected gRPC status {code.name}: {details}")
