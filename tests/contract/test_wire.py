"""What crosses the wire: selections, runs and errors, whole or refused; generated code that matches the contract."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import errors
from shared.convert import run_from_pb, run_to_pb, times_from_pb, times_to_pb
from shared.errors import (
    LimitError,
    SubbatchError,
    UnauthenticatedError,
    UnavailableError,
    WireError,
    from_rpc_error,
    to_status,
)
from shared.pb.v1 import selector_pb2 as pb
from shared.pb.v1 import selector_pb2_grpc
from shared.records import Fingerprints, PhaseTimes, RunInfo, Selection, TensorSpec
from shared.selection_config import SelectionConfig
from shared.timing import Timing
from shared.wire import WIRE_VERSION, decode_selection, encode_selection, same_selection

ROOT = Path(__file__).parents[2]
fixed = settings(deadline=None, derandomize=True)


# ---- selections


def a_selection(rows: int = 4, **changes: Any) -> Selection:
    selection = Selection(
        run="phi2-a",
        step=40,
        weights_version=39,
        large_batch_size=128,
        index=np.array([2**40 + 7, 0, 13, 5][:rows], dtype=np.int64),
        source=np.array([13, 0, 2, 0][:rows], dtype=np.int32),
        weight=np.array([2.0, 0.1, 0.0, 1e-38][:rows], dtype=np.float32),
        gain=np.array([9.5, 4.0, -0.0, 1e-45][:rows], dtype=np.float32),
        num_tokens=np.array([512, 1, 77, 300][:rows], dtype=np.int32),
    )
    return dataclasses.replace(selection, **changes)


def test_a_selection_arrives_as_it_was_sent() -> None:
    for sent in (a_selection(), a_selection(fallback=True, step=0, weights_version=0), a_selection(rows=1)):
        got = decode_selection(encode_selection(sent))
        for field in dataclasses.fields(Selection):
            mine, theirs = getattr(sent, field.name), getattr(got, field.name)
            if isinstance(mine, np.ndarray):
                assert mine.dtype == theirs.dtype
                assert mine.tobytes() == theirs.tobytes()
            else:
                assert (mine, type(mine)) == (theirs, type(theirs))
        assert same_selection(sent, got)


@fixed
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**63 - 1),
            st.integers(0, 2**31 - 1),
            st.floats(0, width=32, allow_infinity=False),
            st.floats(width=32),
            st.integers(1, 2**31 - 1),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_any_rows_arrive_to_the_last_bit(rows: list[tuple[int, int, float, float, int]]) -> None:
    index, source, weight, gain, num_tokens = zip(*rows, strict=True)
    sent = a_selection(
        index=np.array(index, dtype=np.int64),
        source=np.array(source, dtype=np.int32),
        weight=np.array(weight, dtype=np.float32),
        gain=np.array(gain, dtype=np.float32),
        num_tokens=np.array(num_tokens, dtype=np.int32),
    )
    assert same_selection(sent, decode_selection(encode_selection(sent)))


def test_equal_selections_have_equal_bytes() -> None:
    assert encode_selection(a_selection()) == encode_selection(a_selection())


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 41},
        {"run": "phi2-b"},
        {"fallback": True},
        {"index": np.array([2**40 + 7, 0, 13, 6])},
        {"index": np.array([0, 2**40 + 7, 13, 5])},
        {"gain": np.array([9.5, 4.0, 0.0, 1e-45], dtype=np.float32)},
        {"weight": np.array([np.nextafter(np.float32(2), np.float32(3)), 0.1, 0.0, 1e-38], dtype=np.float32)},
    ],
)
def test_selections_that_differ_in_a_bit_are_not_the_same(changes: dict[str, Any]) -> None:
    assert not same_selection(a_selection(), a_selection(**changes))


def ipc(batches: list[pa.RecordBatch], schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def forged(
    columns: dict[str, pa.Array | None] | None = None, metadata: dict[str, str | None] | None = None, batches: int = 1
) -> bytes:
    """A selection's stream, with columns and shared fields replaced, added, or (None) left out."""
    with pa.ipc.open_stream(encode_selection(a_selection())) as reader:
        (whole,) = list(reader)
    arrays = dict(zip(whole.schema.names, whole.columns, strict=True)) | (columns or {})
    shared: dict[str, str | None] = {k.decode(): v.decode() for k, v in whole.schema.metadata.items()}
    shared |= metadata or {}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    schema = pa.schema(
        [(name, array.type) for name, array in arrays.items()],
        metadata={k: v for k, v in shared.items() if v is not None},
    )
    return ipc([pa.record_batch(list(arrays.values()), schema=schema)] * batches, schema)


def column(kind: pa.DataType, *values: Any) -> pa.Array:
    return pa.array(values, type=kind)


def test_the_forger_of_these_tests_can_make_a_selection_that_is_accepted() -> None:
    assert same_selection(decode_selection(forged()), a_selection())


I64, I32, F32 = pa.int64(), pa.int32(), pa.float32()

MALFORMED = {
    "nothing": b"",
    "garbage": b"\x80\x04\x95 not arrow at all " * 20,
    "a pickle": b"\x80\x04]\x94.",
    "no batch": forged(batches=0),
    "two batches": forged(batches=2),
    "no rows": encode_selection(a_selection(rows=0)),
    "a column missing": forged({"gain": None}),
    "a column more": forged({"labels": column(I64, 1, 2, 3, 4)}),
    "a column of another type": forged({"index": column(I32, 1, 2, 3, 4)}),
    "weights of double precision": forged({"weight": column(pa.float64(), 1.0, 1.0, 1.0, 1.0)}),
    "nulls": forged({"index": column(I64, 1, None, 3, 4)}),
    "another wire version": forged(metadata={"wire_version": str(WIRE_VERSION + 1)}),
    "a negative row": forged({"index": column(I64, 1, -1, 3, 4)}),
    "a row without tokens": forged({"num_tokens": column(I32, 1, 0, 3, 4)}),
    "a weight that is not a number": forged({"weight": column(F32, 1.0, float("nan"), 1.0, 1.0)}),
    "an infinite weight": forged({"weight": column(F32, 1.0, float("inf"), 1.0, 1.0)}),
    "a negative weight": forged({"weight": column(F32, 1.0, -1e-30, 1.0, 1.0)}),
    "a step that is no number": forged(metadata={"step": "forty"}),
    "a negative step": forged(metadata={"step": "-1"}),
    "a negative weights version": forged(metadata={"weights_version": "-4"}),
    "more rows than the large batch": forged(metadata={"large_batch_size": "3"}),
    "a fallback that is no number": forged(metadata={"fallback": ""}),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_selection_is_refused(what: str) -> None:
    with pytest.raises(WireError):
        decode_selection(MALFORMED[what])


@pytest.mark.parametrize("key", ["run", "step", "weights_version", "large_batch_size", "fallback", "wire_version"])
def test_a_selection_without_one_of_the_shared_fields_is_refused_by_its_name(key: str) -> None:
    with pytest.raises(WireError, match=f"lacks {key}"):
        decode_selection(forged(metadata={key: None}))


def test_another_wire_version_is_named_even_where_its_columns_are_others() -> None:
    payload = forged({"labels": column(I64, 1, 2, 3, 4)}, {"wire_version": "7"})
    with pytest.raises(WireError, match=f"wire version 7, this side speaks {WIRE_VERSION}"):
        decode_selection(payload)


def test_a_column_that_comes_twice_is_refused() -> None:
    with pa.ipc.open_stream(encode_selection(a_selection())) as reader:
        (whole,) = list(reader)
    fields = [*whole.schema, whole.schema.field("index")]
    schema = pa.schema(fields, metadata=whole.schema.metadata)
    batch = pa.RecordBatch.from_arrays([*whole.columns, whole.column("index")], schema=schema)
    with pytest.raises(WireError):
        decode_selection(ipc([batch], schema))


def test_a_selection_cut_off_anywhere_is_refused_or_whole() -> None:
    sent = a_selection()
    payload = encode_selection(sent)
    whole = 0
    for end in range(len(payload)):
        try:
            got = decode_selection(payload[:end])
        except WireError:
            continue
        whole += 1
        assert same_selection(got, sent)
    # Only the mark of the stream's end may be missing, not a byte of what it holds.
    assert whole <= 8


def test_a_flipped_bit_raises_nothing_but_a_wire_error() -> None:
    payload = encode_selection(a_selection())
    accepted = 0
    for position in range(len(payload)):
        for bit in range(8):
            flipped = bytearray(payload)
            flipped[position] ^= 1 << bit
            try:
                got = decode_selection(bytes(flipped))
            except WireError:
                continue
            accepted += 1
            assert len(got.index) == len(got.weight) == len(got.num_tokens) > 0
    assert accepted, "flips in padding and in values are not noticed: TCP and TLS guard those"


# ---- runs


def a_run(**changes: Any) -> RunInfo:
    run = RunInfo(
        name="phi2-a",
        seed=2**63 - 1,
        timing=Timing(num_steps=1000, staleness=2, push_every=4, lookahead=5),
        world_size=3,
        selection=SelectionConfig(epsilon=1 / 3, temperature=1.0000000000000002, sub_batch_size=31),
        adapter_json='{"r": 128}',
        trainable=(TensorSpec("a.B", (2560, 128), "bfloat16"), TensorSpec("a.scale", (), "float32")),
        fingerprints=Fingerprints("data", "tokens", {"float32": "aa", "bfloat16": "bb"}),
    )
    return dataclasses.replace(run, **changes)


@pytest.mark.parametrize(
    "run",
    [
        a_run(),
        a_run(adapter_json="", trainable=(), seed=0, world_size=1),
        a_run(
            selection=SelectionConfig(pick="random"),
            timing=Timing(num_steps=1, staleness=0, push_every=1, lookahead=0, scores=False),
        ),
    ],
)
def test_a_run_arrives_as_it_was_sent(run: RunInfo) -> None:
    sent = run_to_pb(run).SerializeToString()
    assert run_from_pb(pb.RunInfo.FromString(sent)) == run


@fixed
@given(st.floats(1, 1e300), st.floats(0, 1e300, exclude_min=True))
def test_settings_arrive_to_the_last_bit(temperature: float, epsilon: float) -> None:
    selection = SelectionConfig(sampling="temperature", temperature=temperature, epsilon=epsilon)
    assert run_from_pb(run_to_pb(a_run(selection=selection))).selection == selection


def test_phase_times_arrive_as_they_were_sent() -> None:
    times = PhaseTimes(2**60 + 1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 2**40 + 1)
    assert times_from_pb(times_to_pb(times)) == times


@pytest.mark.parametrize("name", ["", "../x", "a/b", "..", "/etc", "a\\b", "a\0", "a\n", ".a", "-a", "x" * 129])
def test_a_run_name_that_could_lead_out_of_its_folder_is_refused(name: str) -> None:
    message = run_to_pb(a_run())
    message.name = name
    with pytest.raises(WireError, match="name"):
        run_from_pb(message)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("staleness", -1),
        ("push_every", 0),
        ("world_size", 0),
        ("world_size", 2**31 - 1),
        ("seed", -1),
        ("lookahead", 1),
        ("selection_json", ""),
        ("selection_json", "{"),
        ("selection_json", '{"large_batch_size": 8, "sub_batch_size": 9}'),
        ("selection_json", '{"preset": "other"}'),
        ("selection_json", '{"not_a_key": 1}'),
    ],
)
def test_a_run_that_no_configuration_could_have_given_is_refused(field: str, value: Any) -> None:
    message = run_to_pb(a_run())
    setattr(message, field, value)
    with pytest.raises(WireError, match="phi2-a"):
        run_from_pb(message)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, -3), "float32"), ((2,), "int32"), ((2,), "float8_e4m3fn"), ((2,), "")]
)
def test_a_trained_tensor_of_impossible_shape_or_dtype_is_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(WireError, match=r"a\.B"):
        run_from_pb(run_to_pb(a_run(trainable=(TensorSpec("a.B", shape, dtype),))))


# ---- errors

KINDS = sorted(SubbatchError.__subclasses__(), key=lambda kind: kind.__name__)
SAID = "run 'φ-a' expects step 40, the trainer asks for 38:\nresume 100 % from the step-40 checkpoint"


class Refuser(selector_pb2_grpc.SelectorServiceServicer):
    """Answers every call with the error that the call names."""

    def CloseRun(self, request: pb.CloseRunRequest, context: grpc.ServicerContext) -> pb.CloseRunReply:
        kind, text = request.run.split("|", 1)
        code, message, metadata = to_status(getattr(errors, kind)(text))
        context.set_trailing_metadata(metadata)
        context.abort(code, message)


@pytest.fixture(scope="module")
def stub() -> Iterator[Any]:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    selector_pb2_grpc.add_SelectorServiceServicer_to_server(Refuser(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield selector_pb2_grpc.SelectorServiceStub(channel)
    server.stop(None).wait()


def received(stub: Any, kind: type[SubbatchError], text: str) -> SubbatchError:
    with pytest.raises(grpc.RpcError) as caught:
        stub.CloseRun(pb.CloseRunRequest(run=f"{kind.__name__}|{text}"), timeout=30)
    return from_rpc_error(caught.value, doing="closing")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_ours_keeps_its_kind_and_its_words_over_grpc(stub: Any, kind: type[SubbatchError]) -> None:
    got = received(stub, kind, SAID)
    assert type(got) is kind
    assert str(got) == SAID


@pytest.mark.parametrize("letter", ["x", "ü", "漢", "%"])
def test_an_error_with_very_much_to_say_keeps_its_kind_and_its_beginning(stub: Any, letter: str) -> None:
    got = received(stub, errors.CursorError, "the run: " + letter * 50_000)
    assert type(got) is errors.CursorError
    assert str(got).startswith("the run: " + letter * 500)


class Foreign(grpc.RpcError):
    """An error that gRPC itself raised, so that it carries no name of ours."""

    def __init__(self, code: grpc.StatusCode, metadata: Any = None) -> None:
        self._code, self._metadata = code, metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return None

    def trailing_metadata(self) -> Any:
        return self._metadata


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, UnavailableError),
        (grpc.StatusCode.UNAUTHENTICATED, UnauthenticatedError),
        (grpc.StatusCode.UNIMPLEMENTED, WireError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, LimitError),
        (grpc.StatusCode.UNKNOWN, WireError),
    ],
)
def test_an_error_of_grpc_itself_says_what_was_being_done(code: grpc.StatusCode, kind: type[SubbatchError]) -> None:
    for metadata in (None, (), (("subbatch-error", "OSError"), ("other", "x"))):
        got = from_rpc_error(Foreign(code, metadata), doing="opening run 'a'")
        assert type(got) is kind
        assert str(got).startswith("opening run 'a'")


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel, pytest.raises(grpc.RpcError) as caught:
        selector_pb2_grpc.SelectorServiceStub(channel).CloseRun(pb.CloseRunRequest(), timeout=30)
    assert type(from_rpc_error(caught.value, doing="closing")) is UnavailableError


# ---- the contract


def test_generated_code_is_what_the_contract_would_generate() -> None:
    check = subprocess.run(
        [sys.executable, ROOT / "tests/contract/generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr


def test_reading_a_selection_or_a_journal_does_not_load_torch_or_pandas(tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(encode_selection(a_selection()))
    code = (
        "import sys, shared.wire, shared.convert, selector_server.journal, selector_server.run; "
        "shared.wire.decode_selection(open(sys.argv[1], 'rb').read()); print(*sys.modules)"
    )
    command = [sys.executable, "-c", code, sent]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "selector_server.run" in loaded
    assert not {"torch", "transformers", "peft", "safetensors", "pandas"} & set(loaded)
