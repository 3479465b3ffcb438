"""Preparing a store: text in, the right token ids in the right order out, and never half a store.

Truths come from outside the code: the template typed out once more, `tokenizers` called directly, sorting by hand,
processes that are really killed. The tokenizer is trained here, on the test's own rows; nothing needs a network.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from selector_server import prepare as prepare_module
from selector_server.prepare import prepare, print_summary
from shared.dataset import Manifest, Store
from shared.errors import ConfigError, DataError, ModelError, SubbatchError
from shared.tokenizer import load_tokenizer, tokenizer_fingerprint

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{}\n\n### Response:"
)
# (source, instruction, output), sources mixed as they come.
ROWS = [
    ("data/PoT/b.json", "What is 2 + 3?", "print(2 + 3)"),
    ("data/CoT/a.json", "What is 7 - 4?", "7 - 4 is 3.\nThe answer is 3"),
    ("data/PoT/b.json", "What is {x} in ½ of 8?", "print(8 // 2)"),
    ("data/CoT/a.json", "Name a prime.", "2"),
    ("data/CoT/Z.json", "Say hello.", "hello"),
    ("data/PoT/b.json", "What is 10 * 10?", "print(10 * 10)"),
]
STORE_ORDER = [4, 1, 3, 0, 2, 5]  # by name, capitals first, then as they came


def as_dicts(rows: list[tuple[Any, Any, Any]]) -> list[dict[str, Any]]:
    return [{"source": source, "instruction": question, "output": answer} for source, question, answer in rows]


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def train_tokenizer(folder: Path, *, bos: bool = False, eos: bool = True, vocabulary: int = 350) -> Path:
    """A byte-level BPE tokenizer of these rows, saved; with `bos` it puts <s> in front by itself."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([PROMPT.format(question) + answer for _, question, answer in ROWS], trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {"bos_token": "<s>"} | ({"eos_token": "</s>"} if eos else {})
    PreTrainedTokenizerFast(tokenizer_object=raw, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(train_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "in").mkdir()
    return str(write_jsonl(tmp_path / "in" / "rows.jsonl", as_dicts(ROWS)))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def run(source: str, out: Path, tokenizer: str, **settings: Any) -> Manifest:
    return prepare(source, out=out, tokenizer=tokenizer, console=Console(file=io.StringIO()), **settings)


def token_ids(folder: str, text: str) -> list[int]:
    """What `tokenizers` alone makes of a text."""
    ids: list[int] = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text, add_special_tokens=False).ids
    return ids


# What a row becomes.


def test_every_row_is_its_prompt_its_answer_and_eos_by_source(source: str, tmp_path: Path, tokenizer: str) -> None:
    run(source, tmp_path / "store", tokenizer)
    store = Store.open(tmp_path / "store")
    assert store.source_names == ("data/CoT/Z.json", "data/CoT/a.json", "data/PoT/b.json")
    assert store.source_rows == (1, 2, 3)
    assert store.origins(range(6)).tolist() == STORE_ORDER
    for number, origin in enumerate(STORE_ORDER):
        _, question, answer = ROWS[origin]
        prompt = token_ids(tokenizer, PROMPT.format(question))
        row = store.row(number)
        assert row.input_ids.tolist() == [*prompt, *token_ids(tokenizer, answer), 1]
        assert row.num_prompt_tokens == len(prompt)


def test_bos_stands_in_front_where_the_tokenizer_puts_it(source: str, tmp_path: Path) -> None:
    folder = str(train_tokenizer(tmp_path / "tokenizer", bos=True))
    run(source, tmp_path / "store", folder)
    row = Store.open(tmp_path / "store").row(0)
    prompt = [0, *token_ids(folder, PROMPT.format("Say hello."))]
    assert row.input_ids.tolist() == [*prompt, *token_ids(folder, "hello"), 1]
    assert row.num_prompt_tokens == len(prompt)


def test_the_boundary_is_exact_where_a_merge_would_cross_it(tmp_path: Path) -> None:
    raw = Tokenizer(models.BPE())  # no pre-tokenizer: merges run over anything, ":x" among them
    text = PROMPT.format("q") + "xyz"
    raw.train_from_iterator(
        [text] * 50, trainers.BpeTrainer(vocab_size=300, special_tokens=["</s>"], show_progress=False)
    )
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>").save_pretrained(tmp_path / "tokenizer")
    rows = write_jsonl(tmp_path / "rows.jsonl", as_dicts([("a", "q", "xyz")]))
    run(str(rows), tmp_path / "store", str(tmp_path / "tokenizer"))
    row = Store.open(tmp_path / "store").row(0)
    assert len(raw.encode(text).ids) < len(row.input_ids) - 1, "encoding both at once does merge across"
    assert "".join(map(raw.id_to_token, row.input_ids[: row.num_prompt_tokens])) == PROMPT.format("q")
    assert "".join(map(raw.id_to_token, row.input_ids[row.num_prompt_tokens :])) == "xyz</s>"


def test_rows_are_cut_at_the_end_and_those_without_answer_dropped_by_source(tmp_path: Path, tokenizer: str) -> None:
    limit = len(token_ids(tokenizer, PROMPT.format("q q q")))
    rows = [
        ("a", "q", "x"),
        ("a", "q", "x" * 50),
        ("a", "q q q", "one token too late"),
        ("a", "q q q q q", "too late"),
        ("b", "q", "x"),
        ("b", "", "no question"),
        ("b", " \n", "no question"),
        ("b", None, "no question"),
        ("b", "no answer", None),
        ("b", "no answer", "\t "),
    ]
    file = write_jsonl(tmp_path / "rows.jsonl", as_dicts(rows))
    manifest = run(str(file), tmp_path / "store", tokenizer, max_length=limit)
    assert [(s.name, s.rows, s.dropped) for s in manifest.sources] == [("a", 2, 2), ("b", 1, 5)]
    store = Store.open(tmp_path / "store")
    assert store.origins(range(3)).tolist() == [0, 1, 4]
    prompt = token_ids(tokenizer, PROMPT.format("q"))
    short, long = ([*prompt, *token_ids(tokenizer, answer), 1] for answer in ("x", "x" * 50))
    assert len(short) < limit < len(long)
    assert [row.input_ids.tolist() for row in store.rows(range(3))] == [short, long[:limit], short]


def test_the_manifest_and_its_table_tell_what_was_done(source: str, tmp_path: Path, tokenizer: str) -> None:
    manifest = run(source, tmp_path / "store", tokenizer, max_length=100)
    assert manifest == Store.open(tmp_path / "store").manifest
    lengths = [len(token_ids(tokenizer, PROMPT.format(q)) + token_ids(tokenizer, a)) + 1 for _, q, a in ROWS]
    means = [lengths[4], (lengths[1] + lengths[3]) / 2, (lengths[0] + lengths[2] + lengths[5]) / 3]
    assert [s.mean_tokens for s in manifest.sources] == pytest.approx(means)
    assert (manifest.rows, manifest.max_length, manifest.template) == (6, 100, "alpaca")
    assert manifest.tokenizer.fingerprint == tokenizer_fingerprint(load_tokenizer(tokenizer))
    assert (manifest.tokenizer.name, manifest.tokenizer.eos_token_id, manifest.prepared_from) == (tokenizer, 1, source)
    printed = Console(file=io.StringIO(), width=100)
    print_summary(manifest, printed)
    lines = [line.split("│")[1:-1] for line in printed.file.getvalue().splitlines() if "│" in line]  # type: ignore[attr-defined]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["data/CoT/Z.json", "1", f"{means[0]:.1f}", "0"],
        ["data/CoT/a.json", "2", f"{means[1]:.1f}", "0"],
        ["data/PoT/b.json", "3", f"{means[2]:.1f}", "0"],
        ["all", "6", f"{sum(lengths) / 6:.1f}", "0"],
    ]


# Where rows come from, and that it doesn't matter.


def json_array(folder: Path) -> Path:
    (folder / "rows.json").write_text(json.dumps(as_dicts(ROWS), indent=1))
    return folder / "rows.json"


def json_lines_gzipped(folder: Path) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in as_dicts(ROWS))
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return folder / "rows.jsonl.gz"


def parquet(folder: Path, rows: list[tuple[Any, Any, Any]] = ROWS) -> Path:
    table = pa.Table.from_pylist(as_dicts(rows)).append_column("extra", pa.array(range(len(rows))))
    pq.write_table(table.set_column(0, "source", table["source"].cast(pa.large_string())), folder / "rows.parquet")
    return folder / "rows.parquet"


def folder_of_files(folder: Path) -> Path:
    write_jsonl(folder / "1.jsonl", as_dicts(ROWS[:2]))
    (folder / "2").mkdir()
    parquet(folder / "2", ROWS[2:4])
    (folder / "3[a]*.json").write_text(json.dumps([row | {"extra": {"a": 1}} for row in as_dicts(ROWS[4:])]))
    (folder / "4.jsonl").touch()
    (folder / "README.md").write_text("about these rows")
    (folder / ".hidden.jsonl").write_text("not json")
    return folder


@pytest.mark.parametrize("write", [json_array, json_lines_gzipped, parquet, folder_of_files])
def test_every_kind_of_source_gives_the_same_store(
    source: str, tmp_path: Path, tokenizer: str, write: Callable[[Path], Path]
) -> None:
    (tmp_path / "other").mkdir()
    reference = run(source, tmp_path / "a", tokenizer)
    other = run(str(write(tmp_path / "other")), tmp_path / "b", tokenizer)
    assert other.fingerprint == reference.fingerprint
    assert Store.open(tmp_path / "b").origins(range(6)).tolist() == STORE_ORDER


def test_batches_and_processes_leave_the_store_alone(
    source: str, tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = run(source, tmp_path / "a", tokenizer)
    assert run(source, tmp_path / "b", tokenizer, num_proc=2) == reference
    monkeypatch.setattr("selector_server.spill.ROWS_PER_BATCH", 2)
    cut_finer = run(source, tmp_path / "c", tokenizer)
    assert cut_finer.fingerprint == reference.fingerprint
    assert cut_finer.rows_bytes > reference.rows_bytes
    assert run(source, tmp_path / "d", tokenizer, max_length=600).fingerprint != reference.fingerprint


# Nothing, or a whole store.


def refused(tmp_path: Path, error: type[SubbatchError], message: str, prepare_it: Callable[[Path], Any]) -> None:
    """Assert a one-line error, and that it left nothing anywhere near the store."""
    (tmp_path / "work").mkdir(exist_ok=True)
    with pytest.raises(error, match=message) as caught:
        prepare_it(tmp_path / "work" / "store")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "work").iterdir()) == []


def broken_parquet(file: Path) -> None:
    file.write_bytes(b"PAR1 is not enough")


def cut_gzip(file: Path) -> None:
    file.write_bytes(gzip.compress(b'{"source": "a"}\n' * 100)[:30])


def row(**changes: Any) -> str:
    return json.dumps({"source": "a", "instruction": "q", "output": "x"} | changes) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "source,instruction,output\n", r"ends in \.csv, prepare reads \.json, .*: convert the file$"),
        ("rows.jsonl", "", r"rows.jsonl has no rows: give data with the columns source, instruction, output$"),
        ("rows.jsonl", "\n \n", r"has no rows: give data"),
        ("rows.json", "[]", r"has no rows: give data"),
        (
            "rows.jsonl",
            row() + "{oops\n",
            r"rows.jsonl can't be read \(JSON parse error in line 2: .*\): repair it or leave it out$",
        ),
        ("rows.jsonl.gz", cut_gzip, r"can't be read \(Compressed file ended.*\): repair it"),
        ("rows.parquet", broken_parquet, r"can't be read \(.*\): repair it"),
        (
            "rows.jsonl",
            '{"source": "a", "question": "q", "answer": "x"}\n',
            r"has the columns source, question, answer, it lacks instruction, output: name them, perhaps "
            r"--instruction-column question --output-column answer$",
        ),
        ("rows.jsonl", row(output=7), r"column 'output' of .* holds int, prepare needs text: convert it$"),
        ("rows.jsonl", row(instruction=["q"]), r"column 'instruction' of .* holds list, prepare needs text"),
        ("rows.jsonl", row() + row(output=7), r"column 'output' of .* prepare needs text"),
        ("rows.jsonl", row(source=None) + row(), r"row 0 has no source \(None\): name the source of every row$"),
        ("rows.jsonl", row() + row(source=" "), r"row 1 has no source \(' '\): name the source of every row$"),
        ("rows.jsonl", row() + 2 * row(source="[b]", output=""), r"source '\[b\]' has 2 rows and all .* max_length"),
    ],
)
def test_data_that_cannot_be_used_is_one_line_and_leaves_nothing(
    tmp_path: Path, tokenizer: str, name: str, content: str | Callable[[Path], None], message: str
) -> None:
    file = tmp_path / name
    content(file) if callable(content) else file.write_text(content)
    refused(tmp_path, DataError, message, lambda out: run(str(file), out, tokenizer))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.jsonl", r"missing\.jsonl does not exist: give a file \(\.json, .*\), a folder of them"),
        ("./nowhere", r"\./nowhere does not exist: give a file"),
        ("someone/absent", r"no file or folder here, and as a dataset of the hub it can't be read \(.*\): check"),
    ],
)
def test_a_source_that_is_not_there_is_one_line(tmp_path: Path, tokenizer: str, source: str, message: str) -> None:
    refused(tmp_path, DataError, message, lambda out: run(source, out, tokenizer))


def test_a_folder_without_data_is_one_line(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "README.md").touch()
    message = r"folder .*in holds no file that ends in \.json, "
    refused(tmp_path, DataError, message, lambda out: run(str(tmp_path / "in"), out, tokenizer))


def test_settings_out_of_range_are_refused(source: str, tmp_path: Path, tokenizer: str) -> None:
    refused(tmp_path, ConfigError, "max_length is 1 ", lambda out: run(source, out, tokenizer, max_length=1))
    refused(tmp_path, ConfigError, "num_proc 0: ", lambda out: run(source, out, tokenizer, num_proc=0))


def test_a_target_that_is_taken_is_left_alone(source: str, tmp_path: Path, tokenizer: str) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"is not empty, it holds thesis.tex: .* --overwrite to replace a store"):
        run("missing.jsonl", taken, tokenizer)  # said before the data is looked at
    with pytest.raises(DataError, match=r"is not just a store, it holds thesis.tex: .* stores only"):
        run(source, taken, tokenizer, overwrite=True)
    with pytest.raises(DataError, match=r"thesis.tex is a file: give a new or empty folder"):
        run(source, taken / "thesis.tex", tokenizer)
    with pytest.raises(DataError, match=r"can't be made at .*thesis.tex/store: .*choose a folder"):
        run(source, taken / "thesis.tex" / "store", tokenizer)
    assert (taken / "thesis.tex").read_text() == "years of work"


def test_overwrite_replaces_a_store_and_keeps_it_if_it_fails(source: str, tmp_path: Path, tokenizer: str) -> None:
    out = tmp_path / "deep" / "store"
    out.mkdir(parents=True)  # an empty folder is no obstacle
    first = run(source, out, tokenizer)
    with pytest.raises(DataError, match="is not empty"):
        run(source, out, tokenizer)
    bad = write_jsonl(tmp_path / "bad.jsonl", as_dicts([("a", "q", "")]))
    with pytest.raises(DataError, match="source 'a'"):
        run(str(bad), out, tokenizer, overwrite=True)
    assert Store.open(out).manifest == first
    second = run(source, out, tokenizer, overwrite=True, max_length=40)
    assert Store.open(out).manifest == second != first
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_says_so_and_leaves_nothing(
    source: str, tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    def full(*_: Any, **__: Any) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if wrapped:  # as `datasets` does it
                raise datasets.exceptions.DatasetGenerationError("An error occurred") from error
            raise

    if wrapped:
        monkeypatch.setattr(datasets, "load_dataset", full)
        source = "someone/something"
    else:
        monkeypatch.setattr(prepare_module, "write_store", full)
    message = r"no room for a store at .*store, \d+ MiB are left there: .*make room or choose another disk"
    refused(tmp_path, DataError, message, lambda out: run(source, out, tokenizer))


def test_ctrl_c_leaves_nothing(source: str, tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def interrupted_pool(*_: Any, **__: Any) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise TimeoutError  # what multiprocessing makes of it under `datasets`

    (tmp_path / "work").mkdir()
    for stop in (interrupted, interrupted_pool):
        monkeypatch.setattr(prepare_module, "write_store", stop)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "work" / "store", tokenizer)
        assert list((tmp_path / "work").iterdir()) == []


# Stops just before its store is published, or between the two renames of that, says so, and waits to be killed.
CHILD = """
import signal, sys
from pathlib import Path
from selector_server import building, prepare as module

out = Path(sys.argv[3])
rename = building.os.rename

def stop(*_, **__):
    print("ready", flush=True)
    signal.pause()

def rename_to_hidden_only(old, new):
    stop() if new == out else rename(old, new)

if sys.argv[4] == "publish":
    module.publish = stop
else:
    building.os.rename = rename_to_hidden_only
module.prepare(sys.argv[1], tokenizer=sys.argv[2], out=out, overwrite=True)
"""


@contextmanager
def stopped_before(step: str, source: str, out: Path, tokenizer: str) -> Iterator[subprocess.Popen[str]]:
    """A prepare in a process of its own, which got as far as that and stays there."""
    command = [sys.executable, "-c", CHILD, source, tokenizer, str(out), step]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()


def test_a_killed_prepare_keeps_the_old_store_and_leaves_nothing_else(
    source: str, tmp_path: Path, tokenizer: str
) -> None:
    out = tmp_path / "work" / "store"
    before = run(source, out, tokenizer)
    with stopped_before("publish", source, out, tokenizer) as child:
        assert len(list(out.parent.iterdir())) == 2, "the store, and what is being built"
        child.terminate()
        assert child.wait() == 128 + signal.SIGTERM
    assert list(out.parent.iterdir()) == [out]
    assert Store.open(out).manifest == before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_folder_of_a_prepare_killed_with_9_is_removed_and_that_of_a_living_one_is_not(
    source: str, tmp_path: Path, tokenizer: str
) -> None:
    out = tmp_path / "work" / "store"
    foreign = out.parent / ".store.2.abcdefgh.building"  # of the target "store.2"
    foreign.mkdir(parents=True)
    (foreign / "lock").touch()
    with stopped_before("publish", source, out, tokenizer) as living:
        (of_living,) = set(out.parent.iterdir()) - {foreign}
        with stopped_before("publish", source, out, tokenizer) as killed:
            (of_killed,) = set(out.parent.iterdir()) - {foreign, of_living}
            killed.kill()
            killed.wait()
        assert (of_killed / "store" / "manifest.json").exists()
        run(source, out, tokenizer)
        assert set(out.parent.iterdir()) == {foreign, of_living, out}
        assert (of_living / "store" / "manifest.json").exists()
        living.kill()
    run(source, out, tokenizer, overwrite=True)
    assert set(out.parent.iterdir()) == {foreign, out}


def test_a_store_that_was_being_replaced_at_kill_9_is_put_back(source: str, tmp_path: Path, tokenizer: str) -> None:
    out = tmp_path / "work" / "store"
    before = run(source, out, tokenizer, max_length=40)
    with stopped_before("second rename", source, out, tokenizer) as child:
        child.kill()
    assert not out.exists()
    with pytest.raises(DataError, match="is not empty"):
        run(source, out, tokenizer)
    assert Store.open(out).manifest == before
    assert list(out.parent.iterdir()) == [out]


def test_no_cache_outlives_the_preparation(source: str, tmp_path: Path, tokenizer: str) -> None:
    def cached() -> list[Path]:
        return sorted(Path(datasets.config.HF_CACHE_HOME).rglob("*"))

    before = cached()
    run(source, tmp_path / "store", tokenizer)
    assert cached() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "store"]


# Tokenizers.


def test_a_fingerprint_survives_saving_and_other_processes(tmp_path: Path, tokenizer: str) -> None:
    loaded = load_tokenizer(tokenizer)
    loaded.save_pretrained(tmp_path / "again")
    code = "import sys; from shared.tokenizer import *; print(tokenizer_fingerprint(load_tokenizer(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(tmp_path / "again")]
    env = os.environ | {"PYTHONHASHSEED": "7", "HF_HUB_OFFLINE": "1"}
    elsewhere = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.strip()
    assert elsewhere == tokenizer_fingerprint(loaded)


def test_a_fingerprint_ignores_padding_and_truncation(tokenizer: str) -> None:
    loaded = load_tokenizer(tokenizer)
    before = tokenizer_fingerprint(loaded)
    loaded.pad_token = loaded.eos_token
    loaded(["a", "b c"], padding=True, truncation=True, max_length=2)
    loaded.padding_side = "left"
    assert loaded.backend_tokenizer.truncation is not None
    assert tokenizer_fingerprint(loaded) == before


def test_a_fingerprint_sees_whatever_changes_token_ids(tmp_path: Path, tokenizer: str) -> None:
    def added(new: PreTrainedTokenizerFast) -> None:
        new.add_tokens(["prime"])

    def special(new: PreTrainedTokenizerFast) -> None:
        new.add_special_tokens({"additional_special_tokens": ["<call>"]})

    def other_eos(new: PreTrainedTokenizerFast) -> None:
        new.eos_token = "<s>"

    def prefix_space(new: PreTrainedTokenizerFast) -> None:
        new.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)

    def bos(new: PreTrainedTokenizerFast) -> None:
        new.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])

    found = {tokenizer_fingerprint(load_tokenizer(tokenizer))}
    for change in (added, special, other_eos, prefix_space, bos):
        changed = load_tokenizer(tokenizer)
        change(changed)
        found.add(tokenizer_fingerprint(changed))
    found.add(tokenizer_fingerprint(load_tokenizer(str(train_tokenizer(tmp_path / "other", vocabulary=300)))))
    assert len(found) == 7


def test_a_tokenizer_that_cannot_be_used_is_one_line(source: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ByT5Tokenizer().save_pretrained(tmp_path / "slow")
    train_tokenizer(tmp_path / "endless", eos=False)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for path, message in {
        "": r"'' is neither a folder on this machine nor a hub id: give a hub id",
        str(tmp_path / "absent"): r"is neither a folder on this machine nor a hub id",
        source: r"rows.jsonl' is a file: give a hub id",
        str(tmp_path / "absent.gguf"): r"absent.gguf': there is no such file; give the path of a \.gguf file",
        str(tmp_path / "model.gguf"): r"model.gguf' (can't be loaded|needs a package)",
        str(tmp_path / "empty"): r"empty' can't be loaded \(.*\): give a folder with a tokenizer\.json",
        "someone/absent": r"'someone/absent' can't be loaded \(.*\): check the id; without a network, give a folder",
        str(tmp_path / "slow"): r"slow' is a ByT5Tokenizer, which has no fast version: use a model with",
        str(tmp_path / "endless"): r"endless' has no EOS token, which ends every answer: set its eos_token",
    }.items():
        refused(tmp_path, ModelError, message, lambda out, path=path: run(source, out, path))
