from shared.pb.v1 import selector_pb2 as _selector_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JournalRecord(_message.Message):
    __slots__ = ("unix_ns", "opened", "selection", "weights", "closed", "trained")
    UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    unix_ns: int
    opened: Opened
    selection: _selector_pb2.SelectionMessage
    weights: WeightsStored
    closed: Closed
    trained: Trained
    def __init__(self, unix_ns: _Optional[int] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., selection: _Optional[_Union[_selector_pb2.SelectionMessage, _Mapping]] = ..., weights: _Optional[_Union[WeightsStored, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ..., trained: _Optional[_Union[Trained, _Mapping]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("run", "incarnation", "cursor", "restarted", "open_id", "kept_version")
    RUN_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    RESTARTED_FIELD_NUMBER: _ClassVar[int]
    OPEN_ID_FIELD_NUMBER: _ClassVar[int]
    KEPT_VERSION_FIELD_NUMBER: _ClassVar[int]
    run: _selector_pb2.RunInfo
    incarnation: int
    cursor: int
    restarted: bool
    open_id: str
    kept_version: int
    def __init__(self, run: _Optional[_Union[_selector_pb2.RunInfo, _Mapping]] = ..., incarnation: _Optional[int] = ..., cursor: _Optional[int] = ..., restarted: _Optional[bool] = ..., open_id: _Optional[str] = ..., kept_version: _Optional[int] = ...) -> None: ...

class WeightsStored(_message.Message):
    __slots__ = ("version", "incarnation", "sha256", "num_bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    version: int
    incarnation: int
    sha256: str
    num_bytes: int
    def __init__(self, version: _Optional[int] = ..., incarnation: _Optional[int] = ..., sha256: _Optional[str] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class Closed(_message.Message):
    __slots__ = ("incarnation",)
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    def __init__(self, incarnation: _Optional[int] = ...) -> None: ...

class Trained(_message.Message):
    __slots__ = ("incarnation", "selection")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    selection: _selector_pb2.SelectionMessage
    def __init__(self, incarnation: _Optional[int] = ..., selection: _Optional[_Union[_selector_pb2.SelectionMessage, _Mapping]] = ...) -> None: ...
