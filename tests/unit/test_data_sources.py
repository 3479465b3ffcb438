"""Data of other shapes and from other places: other columns, conversations, many files, packed and remote ones.

The same rows, written in another way, have to make the store that plain JSON lines make.
"""

from __future__ import annotations

import gzip
import io
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from selector_server.layout import Columns
from selector_server.parts import find_parts, source_names
from selector_server.prepare import prepare
from selector_server.readers import read
from selector_server.reading import Reading
from shared.dataset import Manifest, Store
from shared.errors import ConfigError, DataError
from tests.unit.test_chat import CHATML, FORGETFUL, LLAMA2, answers_of, make_tokenizer

PAIRS = [("b", "What is 2 + 3?", "5"), ("a", "Name a prime.", "2"), ("b", "Say ½.", "one half"), ("a", "Hi", "Hello")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(CHATML).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(tmp_path: Path, tokenizer: str) -> Callable[..., Manifest]:
    def prepared(*sources: str, **settings: Any) -> Manifest:
        names = ("chat_template", "max_length", "num_proc")
        more = {name: settings.pop(name) for name in names if name in settings}
        out = tmp_path / "stores" / f"{len(list((tmp_path / 'stores').glob('*'))):03}"
        console = Console(file=io.StringIO())
        return prepare(sources, tokenizer=tokenizer, out=out, reading=Reading(**settings), console=console, **more)

    (tmp_path / "stores").mkdir()
    return prepared


def newest(tmp_path: Path) -> Store:
    return Store.open(max((tmp_path / "stores").iterdir()))


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def named(source: str = "source", asked: str = "instruction", answer: str = "output") -> list[dict[str, Any]]:
    return [{source: s, asked: q, answer: a} for s, q, a in PAIRS]


def as_messages(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def plain(tmp_path: Path) -> str:
    (tmp_path / "plain.jsonl").write_bytes(lines(named()))
    return str(tmp_path / "plain.jsonl")


# Columns.


def test_columns_of_other_names_make_the_same_store(tmp_path: Path, plain: str, run: Callable[..., Manifest]) -> None:
    (tmp_path / "other.jsonl").write_bytes(lines(named("dataset", "question", "answer")))
    columns = Columns(instruction="question", output="answer")
    other = run(str(tmp_path / "other.jsonl"), columns=columns, source_column="dataset")
    assert other.fingerprint == run(plain).fingerprint


def test_an_input_stands_behind_its_instruction(tmp_path: Path, run: Callable[..., Manifest]) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([row | {"context": "x = 1"} for row in named()]))
    (tmp_path / "b.jsonl").write_bytes(
        lines([row | {"instruction": f"{row['instruction']}\n\nx = 1"} for row in named()])
    )
    joined = run(str(tmp_path / "a.jsonl"), columns=Columns(input="context"))
    assert joined.fingerprint == run(str(tmp_path / "b.jsonl")).fingerprint


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"Question": "q", "response": "a"},
            r"has the columns Question, response, it lacks source, instruction, output: name them, perhaps "
            r"--instruction-column Question --output-column response --sources-by file$",
        ),
        ({"dialog": [], "task": "x"}, r"perhaps --messages-column dialog --source-column task$"),
        ({"x": 1, "source": "s"}, r"with --instruction-column NAME --output-column NAME$"),
    ],
)
def test_missing_columns_are_named_with_the_likely_fix(
    tmp_path: Path, run: Callable[..., Manifest], row: dict[str, Any], message: str
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines([row]))
    with pytest.raises(DataError, match=message):
        run(str(tmp_path / "rows.jsonl"))


# Conversations.


def chat_rows(kind: str) -> list[dict[str, Any]]:
    if kind == "messages":
        return [{"source": s, "messages": as_messages(q, a)} for s, q, a in PAIRS]
    if kind == "parts":
        text = [{"type": "text", "text": "Say "}, {"type": "text", "text": "½."}]
        rows = chat_rows("messages")
        rows[2]["messages"][0]["content"] = text
        return rows
    return [
        {"source": s, "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
        for s, q, a in PAIRS
    ]


@pytest.mark.parametrize("kind", ["messages", "parts", "sharegpt", "parquet"])
def test_conversations_however_they_are_written_make_the_store_of_instructions_in_the_chat_template(
    tmp_path: Path, plain: str, run: Callable[..., Manifest], kind: str
) -> None:
    if kind == "parquet":
        file = tmp_path / "chat.parquet"
        pq.write_table(pa.Table.from_pylist(chat_rows("messages")), file)
    else:
        file = tmp_path / "chat.jsonl"
        file.write_bytes(lines(chat_rows(kind)))
    reference = run(plain, template="chat")
    assert run(str(file)).fingerprint == reference.fingerprint
    assert reference.template.startswith("chat-")
    store, tokenizer = newest(tmp_path), make_tokenizer(CHATML)
    expected = [f"{answer}<|im_end|>" for name in "ab" for source, _, answer in PAIRS if source == name]
    assert [text for row in store.rows(range(4)) for text in answers_of(tokenizer, row)] == expected


def test_what_the_assistant_does_not_answer_is_left_out_and_no_answer_is_dropped(
    tmp_path: Path, run: Callable[..., Manifest]
) -> None:
    talks = [
        [*as_messages("q", "a"), {"role": "user", "content": "thanks"}],
        as_messages("q", " "),
        [{"role": "user", "content": "anyone?"}],
        [],
        None,
    ]
    (tmp_path / "chat.jsonl").write_bytes(lines([{"messages": talk} for talk in talks]))
    manifest = run(str(tmp_path / "chat.jsonl"), sources_by="file")
    assert [(source.name, source.rows, source.dropped) for source in manifest.sources] == [("chat.jsonl", 1, 4)]
    text = make_tokenizer(CHATML).decode(newest(tmp_path).row(0).input_ids)
    assert text == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"


TOOL = [
    {"role": "user", "content": "time?"},
    {"role": "assistant", "content": None, "tool_calls": [{"name": "clock"}]},
    {"role": "tool", "content": "noon", "tool_call_id": "1"},
    {"role": "assistant", "content": "It is noon."},
]


@pytest.mark.parametrize(
    ("talk", "template", "message"),
    [
        (TOOL, CHATML, r"row 1, of .*chat.jsonl, can't be used: turn 2 is of a tool, .*--tool-turns render .*--drop"),
        ([{"role": "narrator", "content": "x"}], CHATML, r"turn 1 has the role 'narrator', known are system, "),
        ([{"text": "x"}], CHATML, r"turn 1 has text, neither role nor from"),
        ([{"role": "user", "content": [{"type": "image"}]}], CHATML, r"turn 1 has content of list, prepare needs text"),
        (["x"], CHATML, r"turn 1 is str, not a message"),
        ([{"role": "system", "content": "x"}, *as_messages("q", "a")], LLAMA2, r"refuses it \(no system here\)"),
        (as_messages("q", "</think>a") * 2, FORGETFUL, r"writes the conversation up to turn 2 otherwise"),
    ],
)
def test_a_conversation_that_cannot_be_used_is_named_or_dropped(
    tmp_path: Path, run: Callable[..., Manifest], talk: list[Any], template: str, message: str
) -> None:
    (tmp_path / "chat.jsonl").write_bytes(lines([{"messages": as_messages("q", "a")}, {"messages": talk}]))
    with pytest.raises(DataError, match=message):
        run(str(tmp_path / "chat.jsonl"), sources_by="file", chat_template=template)
    kept = run(str(tmp_path / "chat.jsonl"), sources_by="file", chat_template=template, drop_refused=True)
    assert [(source.rows, source.dropped) for source in kept.sources] == [(1, 1)]


def test_turns_of_tools_are_the_templates_where_that_is_asked_for(tmp_path: Path, run: Callable[..., Manifest]) -> None:
    template = CHATML.replace(
        "{{ m['content'] }}", "{{ m['content'] }}{{ m['tool_calls'][0].name if m['tool_calls'] else '' }}"
    )
    (tmp_path / "chat.jsonl").write_bytes(lines([{"messages": TOOL}]))
    run(str(tmp_path / "chat.jsonl"), sources_by="file", tools=True, chat_template=template)
    found = answers_of(make_tokenizer(CHATML), newest(tmp_path).row(0))
    assert found == ["clock<|im_end|>", "It is noon.<|im_end|>"]


def test_a_system_prompt_needs_a_template_that_takes_one(plain: str, run: Callable[..., Manifest]) -> None:
    with pytest.raises(ConfigError, match="'alpaca' takes no system prompt: leave it out, or give --template chat"):
        run(plain, system="Be brief.")


# Files.


def test_files_folders_and_patterns_are_read_together_and_name_their_sources(
    tmp_path: Path, run: Callable[..., Manifest]
) -> None:
    (tmp_path / "in" / "math").mkdir(parents=True)
    (tmp_path / "in" / "code" / "old").mkdir(parents=True)
    for place in ("math/1.jsonl", "math/2.jsonl", "code/old/3.jsonl", "code/4.jsonl", "code/5.csv"):
        (tmp_path / "in" / place).write_bytes(lines(named()[:2]))
    by_file = run(str(tmp_path / "in"), sources_by="file")
    assert [source.name for source in by_file.sources] == [
        "code/4.jsonl",
        "code/old/3.jsonl",
        "math/1.jsonl",
        "math/2.jsonl",
    ]
    by_folder = run(str(tmp_path / "in" / "**" / "*.jsonl"), sources_by="folder")
    assert [(source.name, source.rows) for source in by_folder.sources] == [("code", 2), ("code/old", 2), ("math", 4)]
    one = run(str(tmp_path / "in" / "math" / "2.jsonl"), str(tmp_path / "in" / "math" / "1.jsonl"), sources_by="folder")
    assert [(source.name, source.rows) for source in one.sources] == [("math", 4)]
    by_column = run(str(tmp_path / "in" / "math"), str(tmp_path / "in" / "code" / "4.jsonl"))
    assert [(source.name, source.rows) for source in by_column.sources] == [("a", 3), ("b", 3)]


def packed(text: bytes, how: str) -> bytes:
    if how == "gz":  # of two members, as files that were put together have it
        return gzip.compress(text[:70]) + gzip.compress(text[70:])
    return bytes(pa.Codec("zstd").compress(text, asbytes=True))


@pytest.mark.parametrize(
    "name", ["rows.jsonl.gz", "rows.jsonl.zst", "rows.json.zst", "rows.JSON.GZ", "rows.ndjson", "rows.json"]
)
def test_packed_files_make_the_same_store(tmp_path: Path, plain: str, run: Callable[..., Manifest], name: str) -> None:
    text = json.dumps(named(), indent=2).encode() if "json" == name.lower().split(".")[1] else lines(named())
    how = name.lower().rpartition(".")[2]
    (tmp_path / name).write_bytes(packed(text, how) if how in ("gz", "zst") else text)
    assert run(str(tmp_path / name)).fingerprint == run(plain).fingerprint


def test_files_of_any_file_system_are_read_where_they_are(plain: str, run: Callable[..., Manifest]) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/1.jsonl", lines(named()[:3]))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(named()[3:]), buffer)
    memory.pipe("/bucket/2.parquet", buffer.getvalue())
    memory.pipe("/bucket/README.md", b"about these rows")
    try:
        reference = run(plain)
        for source in (
            ["memory://bucket"],
            ["memory://bucket/*"],
            ["memory://bucket/1.jsonl", "memory://bucket/2.parquet"],
        ):
            assert run(*source).fingerprint == reference.fingerprint
        with pytest.raises(DataError, match=r"memory://bucket/\*\.md names no file that ends in"):
            run("memory://bucket/*.md")
        by_file = run("memory://bucket/", sources_by="file")
        assert [source.name for source in by_file.sources] == ["1.jsonl", "2.parquet"]
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_of_a_web_server_are_read_and_signatures_stay_out_of_sight(
    tmp_path: Path, plain: str, run: Callable[..., Manifest], website: str
) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "www" / "rows.jsonl.gz").write_bytes(gzip.compress(lines(named())))
    found = run(f"{website}/rows.jsonl.gz?signature=secret")
    assert found.fingerprint == run(plain).fingerprint
    assert found.prepared_from == f"{website}/rows.jsonl.gz"
    with pytest.raises(DataError, match=r"absent.jsonl can't be read \(.*\): repair") as caught:
        run(f"{website}/absent.jsonl?signature=secret")
    assert "secret" not in str(caught.value)


def test_a_package_that_a_protocol_needs_is_named(
    run: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(DataError, match=r"s3:// needs a package .*Install s3fs.*: pip install 'subbatch\[s3\]'"):
        run("s3://bucket/rows.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'[{"a": 1}, {"a": ]', "JSON parse error in element 1"),
        (b'[{"a": 1} {"a": 2}]', r"after 1 elements: '\{' where , or \] belongs"),
        (b'[{"a": 1}, {"a": 2}', "the array has no end"),
        (b"[1, 2]", "JSON row 0 is int, a row is an object"),
        (b'{"a": 1}\n\xff\n', "can't be read"),
        (b"{", "can't be read"),
    ],
)
def test_broken_json_is_one_line(tmp_path: Path, run: Callable[..., Manifest], text: bytes, message: str) -> None:
    (tmp_path / "rows.json").write_bytes(text)
    with pytest.raises(DataError, match=message):
        run(str(tmp_path / "rows.json"), columns=Columns(instruction="a", output="a"), sources_by="file")


@pytest.mark.parametrize("is_array", [True, False])
def test_a_file_is_read_as_its_rows_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_array: bool
) -> None:
    rows = [{"text": "x" * 100 + str(number), "n": number} for number in range(200_000)]
    text = json.dumps(rows).encode() if is_array else lines(rows)
    (part,) = find_parts([str(tmp_path)]) if (tmp_path / "rows.json").write_bytes(text) else ()
    opened: list[Any] = []
    raw_open = part.files.open
    monkeypatch.setattr(part.files, "open", lambda *a, **k: opened.append(raw_open(*a, **k)) or opened[-1])
    batches = read(part, revision=None, cache=tmp_path)
    first = next(batches)
    assert first == rows[:1000]
    assert opened[0].tell() < 4 << 20 < len(text)
    assert [row for batch in batches for row in batch] == rows[1000:]


def test_an_element_longer_than_what_is_read_at_once_is_whole(tmp_path: Path) -> None:
    rows = [{"text": "é" * 3_000_000}, {"text": "]"}, {"text": 12345}]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False))
    (part,) = find_parts([str(tmp_path / "rows.json")])
    assert [row for batch in read(part, revision=None, cache=tmp_path) for row in batch] == rows


def test_parts_of_different_places_have_names_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    fsspec.filesystem("memory").pipe("/x/rows.jsonl", b"")
    parts = find_parts([str(tmp_path / "rows.jsonl"), "memory://x/rows.jsonl", "org/name"])
    assert len(set(source_names(parts, by="file"))) == 3
    assert source_names(parts, by="folder")[2] == "org/name"


def test_rows_pass_through_the_spill_by_source_however_little_is_held(
    plain: str, run: Callable[..., Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, order = run(plain), newest(tmp_path).origins(range(4)).tolist()
    for held, batch in ((1, 1 << 24), (1, 150), (1 << 24, 1)):
        monkeypatch.setattr("selector_server.spill._HELD_TOKENS", held)
        monkeypatch.setattr("selector_server.spill.TOKENS_PER_BATCH", batch)
        assert run(plain).fingerprint == reference.fingerprint
        assert newest(tmp_path).origins(range(4)).tolist() == order == [1, 3, 0, 2]
