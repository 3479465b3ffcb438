from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Payload(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PAYLOAD_INDICES: _ClassVar[Payload]
    PAYLOAD_RECORDS: _ClassVar[Payload]
PAYLOAD_INDICES: Payload
PAYLOAD_RECORDS: Payload

class Fingerprints(_message.Message):
    __slots__ = ("dataset", "tokenizer", "base_model")
    class BaseModelEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DATASET_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    tokenizer: str
    base_model: _containers.ScalarMap[str, str]
    def __init__(self, dataset: _Optional[str] = ..., tokenizer: _Optional[str] = ..., base_model: _Optional[_Mapping[str, str]] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "shape", "dtype")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ...) -> None: ...

class RunInfo(_message.Message):
    __slots__ = ("name", "seed", "num_steps", "staleness", "push_every", "lookahead", "world_size", "selection_json", "adapter_json", "trainable", "fingerprints", "owner")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    PUSH_EVERY_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    SELECTION_JSON_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_JSON_FIELD_NUMBER: _ClassVar[int]
    TRAINABLE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    name: str
    seed: int
    num_steps: int
    staleness: int
    push_every: int
    lookahead: int
    world_size: int
    selection_json: str
    adapter_json: str
    trainable: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    fingerprints: Fingerprints
    owner: str
    def __init__(self, name: _Optional[str] = ..., seed: _Optional[int] = ..., num_steps: _Optional[int] = ..., staleness: _Optional[int] = ..., push_every: _Optional[int] = ..., lookahead: _Optional[int] = ..., world_size: _Optional[int] = ..., selection_json: _Optional[str] = ..., adapter_json: _Optional[str] = ..., trainable: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., fingerprints: _Optional[_Union[Fingerprints, _Mapping]] = ..., owner: _Optional[str] = ...) -> None: ...

class OpenRunRequest(_message.Message):
    __slots__ = ("run", "cursor", "restart", "open_id", "checkpoint_incarnation", "trained")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    OPEN_ID_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    run: RunInfo
    cursor: int
    restart: bool
    open_id: str
    checkpoint_incarnation: int
    trained: _containers.RepeatedCompositeFieldContainer[TrainedStep]
    def __init__(self, run: _Optional[_Union[RunInfo, _Mapping]] = ..., cursor: _Optional[int] = ..., restart: _Optional[bool] = ..., open_id: _Optional[str] = ..., checkpoint_incarnation: _Optional[int] = ..., trained: _Optional[_Iterable[_Union[TrainedStep, _Mapping]]] = ...) -> None: ...

class TrainedStep(_message.Message):
    __slots__ = ("step", "rows_sha256")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ROWS_SHA256_FIELD_NUMBER: _ClassVar[int]
    step: int
    rows_sha256: bytes
    def __init__(self, step: _Optional[int] = ..., rows_sha256: _Optional[bytes] = ...) -> None: ...

class OpenRunReply(_message.Message):
    __slots__ = ("incarnation", "missing_versions")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    MISSING_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    missing_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, incarnation: _Optional[int] = ..., missing_versions: _Optional[_Iterable[int]] = ...) -> None: ...

class StreamSelectionsRequest(_message.Message):
    __slots__ = ("run", "incarnation", "rank", "from_step", "payload")
    RUN_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    FROM_STEP_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    run: str
    incarnation: int
    rank: int
    from_step: int
    payload: Payload
    def __init__(self, run: _Optional[str] = ..., incarnation: _Optional[int] = ..., rank: _Optional[int] = ..., from_step: _Optional[int] = ..., payload: _Optional[_Union[Payload, str]] = ...) -> None: ...

class PhaseTimes(_message.Message):
    __slots__ = ("started_unix_ns", "load_seconds", "draw_seconds", "score_seconds", "pick_seconds", "journal_seconds", "receive_seconds", "peak_bytes")
    STARTED_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DRAW_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SCORE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PICK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RECEIVE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    started_unix_ns: int
    load_seconds: float
    draw_seconds: float
    score_seconds: float
    pick_seconds: float
    journal_seconds: float
    receive_seconds: float
    peak_bytes: int
    def __init__(self, started_unix_ns: _Optional[int] = ..., load_seconds: _Optional[float] = ..., draw_seconds: _Optional[float] = ..., score_seconds: _Optional[float] = ..., pick_seconds: _Optional[float] = ..., journal_seconds: _Optional[float] = ..., receive_seconds: _Optional[float] = ..., peak_bytes: _Optional[int] = ...) -> None: ...

class SelectionMessage(_message.Message):
    __slots__ = ("step", "weights_version", "arrow", "times", "history", "weights_sha256", "scores_sha256", "chain", "arrow_crc32", "rows", "rows_crc32")
    STEP_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    ARROW_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    SCORES_SHA256_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    ARROW_CRC32_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_CRC32_FIELD_NUMBER: _ClassVar[int]
    step: int
    weights_version: int
    arrow: bytes
    times: PhaseTimes
    history: bytes
    weights_sha256: str
    scores_sha256: bytes
    chain: bytes
    arrow_crc32: int
    rows: bytes
    rows_crc32: int
    def __init__(self, step: _Optional[int] = ..., weights_version: _Optional[int] = ..., arrow: _Optional[bytes] = ..., times: _Optional[_Union[PhaseTimes, _Mapping]] = ..., history: _Optional[bytes] = ..., weights_sha256: _Optional[str] = ..., scores_sha256: _Optional[bytes] = ..., chain: _Optional[bytes] = ..., arrow_crc32: _Optional[int] = ..., rows: _Optional[bytes] = ..., rows_crc32: _Optional[int] = ...) -> None: ...

class PushWeightsRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: PushWeightsHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[PushWeightsHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class PushWeightsHeader(_message.Message):
    __slots__ = ("run", "incarnation", "version", "num_bytes", "sha256", "delta", "next_is_delta")
    RUN_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    NEXT_IS_DELTA_FIELD_NUMBER: _ClassVar[int]
    run: str
    incarnation: int
    version: int
    num_bytes: int
    sha256: str
    delta: WeightsDelta
    next_is_delta: bool
    def __init__(self, run: _Optional[str] = ..., incarnation: _Optional[int] = ..., version: _Optional[int] = ..., num_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., delta: _Optional[_Union[WeightsDelta, _Mapping]] = ..., next_is_delta: _Optional[bool] = ...) -> None: ...

class WeightsDelta(_message.Message):
    __slots__ = ("base_version", "base_sha256", "num_bytes", "sha256")
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_SHA256_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    base_version: int
    base_sha256: str
    num_bytes: int
    sha256: str
    def __init__(self, base_version: _Optional[int] = ..., base_sha256: _Optional[str] = ..., num_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class PushWeightsReply(_message.Message):
    __slots__ = ("durable_version", "needs_whole")
    DURABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    NEEDS_WHOLE_FIELD_NUMBER: _ClassVar[int]
    durable_version: int
    needs_whole: bool
    def __init__(self, durable_version: _Optional[int] = ..., needs_whole: _Optional[bool] = ...) -> None: ...

class ReportProgressRequest(_message.Message):
    __slots__ = ("run", "incarnation", "rank", "completed")
    RUN_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    run: str
    incarnation: int
    rank: int
    completed: int
    def __init__(self, run: _Optional[str] = ..., incarnation: _Optional[int] = ..., rank: _Optional[int] = ..., completed: _Optional[int] = ...) -> None: ...

class ReportProgressReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportTrainedRequest(_message.Message):
    __slots__ = ("run", "incarnation", "steps")
    RUN_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    run: str
    incarnation: int
    steps: _containers.RepeatedCompositeFieldContainer[TrainedStep]
    def __init__(self, run: _Optional[str] = ..., incarnation: _Optional[int] = ..., steps: _Optional[_Iterable[_Union[TrainedStep, _Mapping]]] = ...) -> None: ...

class ReportTrainedReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeServerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeServerReply(_message.Message):
    __slots__ = ("version", "unix_ns", "fingerprints")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    version: str
    unix_ns: int
    fingerprints: Fingerprints
    def __init__(self, version: _Optional[str] = ..., unix_ns: _Optional[int] = ..., fingerprints: _Optional[_Union[Fingerprints, _Mapping]] = ...) -> None: ...

class WatchRunRequest(_message.Message):
    __slots__ = ("run", "detail")
    RUN_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    run: str
    detail: bool
    def __init__(self, run: _Optional[str] = ..., detail: _Optional[bool] = ...) -> None: ...

class RunStatus(_message.Message):
    __slots__ = ("run", "incarnation", "num_steps", "next_step", "completed", "weights_versions", "waits_for", "closed", "silent_seconds", "gone_ranks", "scoring_processes", "num_fallback", "detail", "sent_bytes")
    class CompletedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    class SilentSecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    SILENT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    GONE_RANKS_FIELD_NUMBER: _ClassVar[int]
    SCORING_PROCESSES_FIELD_NUMBER: _ClassVar[int]
    NUM_FALLBACK_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    run: str
    incarnation: int
    num_steps: int
    next_step: int
    completed: _containers.ScalarMap[int, int]
    weights_versions: _containers.RepeatedScalarFieldContainer[int]
    waits_for: str
    closed: bool
    silent_seconds: _containers.ScalarMap[int, float]
    gone_ranks: _containers.RepeatedScalarFieldContainer[int]
    scoring_processes: int
    num_fallback: int
    detail: RunDetail
    sent_bytes: int
    def __init__(self, run: _Optional[str] = ..., incarnation: _Optional[int] = ..., num_steps: _Optional[int] = ..., next_step: _Optional[int] = ..., completed: _Optional[_Mapping[int, int]] = ..., weights_versions: _Optional[_Iterable[int]] = ..., waits_for: _Optional[str] = ..., closed: _Optional[bool] = ..., silent_seconds: _Optional[_Mapping[int, float]] = ..., gone_ranks: _Optional[_Iterable[int]] = ..., scoring_processes: _Optional[int] = ..., num_fallback: _Optional[int] = ..., detail: _Optional[_Union[RunDetail, _Mapping]] = ..., sent_bytes: _Optional[int] = ...) -> None: ...

class RunDetail(_message.Message):
    __slots__ = ("unix_ns", "lookahead", "staleness", "large_batch_size", "sub_batch_size", "steps", "sources", "verdict")
    class SourcesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: SourceRows
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[SourceRows, _Mapping]] = ...) -> None: ...
    UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    LARGE_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    SUB_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    unix_ns: int
    lookahead: int
    staleness: int
    large_batch_size: int
    sub_batch_size: int
    steps: _containers.RepeatedCompositeFieldContainer[StepSeen]
    sources: _containers.MessageMap[str, SourceRows]
    verdict: Verdict
    def __init__(self, unix_ns: _Optional[int] = ..., lookahead: _Optional[int] = ..., staleness: _Optional[int] = ..., large_batch_size: _Optional[int] = ..., sub_batch_size: _Optional[int] = ..., steps: _Optional[_Iterable[_Union[StepSeen, _Mapping]]] = ..., sources: _Optional[_Mapping[str, SourceRows]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ...) -> None: ...

class StepSeen(_message.Message):
    __slots__ = ("step", "weights_version", "times", "ready_unix_ns", "first_completed_unix_ns", "last_completed_unix_ns")
    STEP_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    READY_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    FIRST_COMPLETED_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    LAST_COMPLETED_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    step: int
    weights_version: int
    times: PhaseTimes
    ready_unix_ns: int
    first_completed_unix_ns: int
    last_completed_unix_ns: int
    def __init__(self, step: _Optional[int] = ..., weights_version: _Optional[int] = ..., times: _Optional[_Union[PhaseTimes, _Mapping]] = ..., ready_unix_ns: _Optional[int] = ..., first_completed_unix_ns: _Optional[int] = ..., last_completed_unix_ns: _Optional[int] = ...) -> None: ...

class SourceRows(_message.Message):
    __slots__ = ("drawn", "picked")
    DRAWN_FIELD_NUMBER: _ClassVar[int]
    PICKED_FIELD_NUMBER: _ClassVar[int]
    drawn: int
    picked: int
    def __init__(self, drawn: _Optional[int] = ..., picked: _Optional[int] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("level", "headline", "remedy", "wait_fraction", "selection_seconds", "training_seconds", "step_seconds")
    class Level(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LEVEL_UNSPECIFIED: _ClassVar[Verdict.Level]
        GOOD: _ClassVar[Verdict.Level]
        STARTING: _ClassVar[Verdict.Level]
        WAITING: _ClassVar[Verdict.Level]
        STALLED: _ClassVar[Verdict.Level]
        FAILED: _ClassVar[Verdict.Level]
        DONE: _ClassVar[Verdict.Level]
    LEVEL_UNSPECIFIED: Verdict.Level
    GOOD: Verdict.Level
    STARTING: Verdict.Level
    WAITING: Verdict.Level
    STALLED: Verdict.Level
    FAILED: Verdict.Level
    DONE: Verdict.Level
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    HEADLINE_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    WAIT_FRACTION_FIELD_NUMBER: _ClassVar[int]
    SELECTION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    level: Verdict.Level
    headline: str
    remedy: str
    wait_fraction: float
    selection_seconds: float
    training_seconds: float
    step_seconds: float
    def __init__(self, level: _Optional[_Union[Verdict.Level, str]] = ..., headline: _Optional[str] = ..., remedy: _Optional[str] = ..., wait_fraction: _Optional[float] = ..., selection_seconds: _Optional[float] = ..., training_seconds: _Optional[float] = ..., step_seconds: _Optional[float] = ...) -> None: ...

class DescribeStoreRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeStoreReply(_message.Message):
    __slots__ = ("dataset", "tokenizer", "max_token_id", "sources")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    tokenizer: str
    max_token_id: int
    sources: _containers.RepeatedCompositeFieldContainer[Source]
    def __init__(self, dataset: _Optional[str] = ..., tokenizer: _Optional[str] = ..., max_token_id: _Optional[int] = ..., sources: _Optional[_Iterable[_Union[Source, _Mapping]]] = ...) -> None: ...

class Source(_message.Message):
    __slots__ = ("name", "rows")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    name: str
    rows: int
    def __init__(self, name: _Optional[str] = ..., rows: _Optional[int] = ...) -> None: ...

class CloseRunRequest(_message.Message):
    __slots__ = ("run", "incarnation")
    RUN_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    run: str
    incarnation: int
    def __init__(self, run: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class CloseRunReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
