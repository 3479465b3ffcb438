"""Settings from a file, the environment and the command line, and what a user is told when one is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.config import Config, RunConfig, SelectionConfig, load_config
from shared.errors import ConfigError

Write = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("SUBBATCH_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "run.toml"
        path.write_text(text)
        return path

    return write


def refusal(path: Path | None, overrides: list[str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_sets_what_it_names_and_leaves_the_defaults(write: Write) -> None:
    config = load_config(write('[run]\nname = "phi2-a"\n[train.lora]\nrank = 16\n'))
    assert config.run == RunConfig(name="phi2-a")
    assert (config.train.lora.rank, config.train.lora.alpha) == (16, 512)
    assert config.selection == SelectionConfig()


def test_no_file_gives_the_defaults_which_are_the_papers() -> None:
    config = load_config(None)
    assert config == Config()
    assert (config.selection.large_batch_size, config.selection.sub_batch_size) == (128, 64)
    assert (config.selection.sampling, config.selection.pick) == ("inverse_source", "facility_location")
    assert (config.run.staleness, config.run.push_every) == (1, 1)


def test_the_command_line_beats_the_environment_which_beats_the_file(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write('[run]\nname = "file"\nseed = 1\nnum_steps = 11\n')
    monkeypatch.setenv("SUBBATCH_RUN__NAME", "environment")
    monkeypatch.setenv("SUBBATCH_RUN__SEED", "2")
    run = load_config(path, ["--run.name", "line"]).run
    assert (run.name, run.seed, run.num_steps) == ("line", 2, 11)


def test_the_environment_may_name_the_file_which_a_path_that_is_given_takes_the_place_of(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (named := tmp_path / "named.toml").write_text('[run]\nname = "named"\nseed = 5\n')
    monkeypatch.setenv("SUBBATCH_CONFIG", str(named))
    monkeypatch.setenv("SUBBATCH_RUN__SEED", "6")
    assert load_config(None, ["--run.num_steps", "7"]).run == RunConfig(name="named", seed=6, num_steps=7)
    assert load_config(write('[run]\nname = "given"\n')).run == RunConfig(name="given", seed=6)
    monkeypatch.setenv("SUBBATCH_CONFIG", str(tmp_path / "gone.toml"))
    assert "gone.toml, which SUBBATCH_CONFIG names, does not exist" in refusal(None)


def test_it_is_known_which_keys_were_given(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBBATCH_TRAIN__THREADS", "2")
    config = load_config(write("[train]\nsave_every = 3\n"), ["--train.device", "cpu"])
    assert config.train.model_fields_set == {"threads", "save_every", "device"}


def test_sources_of_settings_are_joined_before_they_are_checked_against_each_other(write: Write) -> None:
    path = write("[selection]\nlarge_batch_size = 8\nsub_batch_size = 9\n")
    selection = load_config(path, ["--selection.large_batch_size", "16"]).selection
    assert (selection.large_batch_size, selection.sub_batch_size) == (16, 9)


def test_one_setting_of_a_nested_branch_leaves_its_others(write: Write) -> None:
    path = write('[server.tls]\ncertificate = "a.pem"\nkey = "b.pem"\n[train.lora]\nrank = 3\nalpha = 7\n')
    config = load_config(path, ["--server.tls.key", "c.pem", "--train.lora.rank", "4"])
    assert (config.server.tls.certificate, config.server.tls.key) == (Path("a.pem"), Path("c.pem"))
    assert (config.train.lora.rank, config.train.lora.alpha) == (4, 7)


def test_lora_false_trains_every_weight(write: Write) -> None:
    assert load_config(write("[train]\nlora = false\n")).train.lora is False
    assert load_config(None, ["--train.lora", "false"]).train.lora is False


@pytest.mark.parametrize(
    ("text", "wrong", "near"),
    [
        ('[run]\nnmae = "a"\n', "run.nmae", "'name'"),
        ('[rnu]\nname = "a"\n', "rnu", "'run'"),
        ("[selection]\nlarge_batch = 8\n", "selection.large_batch", "'large_batch_size'"),
        ('[client]\nselectr = "host:1"\n', "client.selectr", "'selector'"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(write: Write, text: str, wrong: str, near: str) -> None:
    message = refusal(write(text))
    assert f"{wrong}: unknown key; did you mean {near}?" in message
    assert "run.toml" in message


@pytest.mark.parametrize(
    ("text", "wrong", "near"),
    [
        ('[server.tls]\ncertificat = "a.pem"\n', "server.tls.certificat", "'certificate'"),
        ("[train.lora]\nrnk = 4\n", "rnk", "'rank'"),
    ],
)
def test_an_unknown_key_of_a_branch_that_may_be_absent_is_named_too(
    write: Write, text: str, wrong: str, near: str
) -> None:
    message = refusal(write(text))
    assert wrong in message
    assert near in message


def test_an_unknown_key_that_resembles_nothing_gets_the_list_of_known_ones(write: Write) -> None:
    message = refusal(write("[run]\nzzz = 1\n"))
    assert all(key in message for key in RunConfig.model_fields)


def test_an_unknown_key_in_the_environment_or_on_the_command_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--run.nmae" in refusal(None, ["--run.nmae", "a"])
    assert "stray" in refusal(None, ["stray"])
    monkeypatch.setenv("SUBBATCH_RUN__NMAE", "a")
    assert "did you mean 'name'" in refusal(None)
    monkeypatch.delenv("SUBBATCH_RUN__NMAE")
    monkeypatch.setenv("SUBBATCH_RNU__NAME", "a")
    assert "SUBBATCH_RNU__NAME" in refusal(None)


def test_prefixes_of_options_are_not_guessed() -> None:
    assert "--run.num" in refusal(None, ["--run.num", "3"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[run]\nnum_steps = "many"\n', ["run.num_steps", "integer", "'many'"]),
        ("[run]\nnum_steps = 1.5\n", ["run.num_steps", "1.5"]),
        ("[run]\nnum_steps = 0\n", ["run.num_steps", "1", "given 0"]),
        ("[run]\nseed = -1\n", ["run.seed", "given -1"]),
        ("run = 3\n", ["run", "given 3"]),
        ("[selection]\nepsilon = 0.0\n", ["selection.epsilon", "given 0.0"]),
        ("[selection]\nepsilon = nan\n", ["selection.epsilon", "given nan"]),
        ('[selection]\nsampling = "inverse"\n', ["selection.sampling", "'inverse_source'", "'inverse'"]),
        ("[server]\nport = 65536\n", ["server.port", "given 65536"]),
        ("[train.lora]\nrank = 0\n", ["train.lora", "rank", "given 0"]),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(write: Write, text: str, named: list[str]) -> None:
    message = refusal(write(text))
    assert all(part in message for part in named), message


def test_every_wrong_setting_is_named_at_once(write: Write) -> None:
    message = refusal(write("[run]\nnum_steps = 0\nstaleness = -1\n"))
    assert "run.num_steps" in message
    assert "run.staleness" in message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[selection]\nlarge_batch_size = 8\nsub_batch_size = 9\n", ["sub_batch_size 9", "large_batch_size 8"]),
        ("[run]\nstaleness = 2\nlookahead = 1\n", ["lookahead 1", "staleness 2"]),
        ('[server.tls]\ncertificate = "a.pem"\n', ["certificate a.pem", "key None", "both or neither"]),
        ('[client.tls]\nkey = "k.pem"\n', ["certificate None", "key k.pem"]),
    ],
)
def test_two_settings_that_contradict_each_other_are_both_named(write: Write, text: str, named: list[str]) -> None:
    message = refusal(write(text))
    assert all(part in message for part in named), message


def test_settings_at_the_edge_of_contradiction_are_accepted(write: Write) -> None:
    config = load_config(
        write("[selection]\nlarge_batch_size = 8\nsub_batch_size = 8\n[run]\nstaleness = 2\nlookahead = 2\n")
    )
    assert config.selection.sub_batch_size == 8
    assert config.run.lookahead == 2


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "a\n", "ä", "x" * 129])
def test_a_run_name_that_could_not_be_a_folders_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        RunConfig(name=name)


@pytest.mark.parametrize("name", ["a", "phi2-lr2e-5.try_3", "x" * 128])
def test_a_run_name_of_letters_digits_and_marks_is_accepted(name: str) -> None:
    assert RunConfig(name=name).name == name


def test_a_file_that_is_not_there_is_named() -> None:
    assert "/no/such/run.toml does not exist" in refusal(Path("/no/such/run.toml"))


@pytest.mark.parametrize("content", [b"[run\nname = 'a'", b"name: a\n", b"\xff\xfe\x00", b'{"run": {}}'])
def test_a_file_that_is_not_toml_is_said_not_to_be(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    assert f"{path} is not valid TOML" in refusal(path)


@pytest.mark.parametrize("key", ["model.path", "train.trackers"])
def test_a_value_that_is_nested_without_end_is_refused(write: Write, key: str) -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        load_config(write(f"{key} = {'[' * 5000}"))


def test_the_tree_cannot_be_changed_once_it_is_read() -> None:
    config = load_config(None)
    with pytest.raises(ValidationError, match="frozen"):
        config.run = RunConfig(name="other")
    with pytest.raises(ValidationError, match="frozen"):
        config.run.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.selection.large_batch_size = 3


def test_random_picks_need_no_scores_and_hence_no_weights() -> None:
    assert SelectionConfig().scores
    assert not SelectionConfig(pick="random").scores
