from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from shared.config import ClientConfig, Config, ServerConfig, TlsConfig, load_config
from shared.errors import ConfigError
from shared.tokens import TokenFile, own_token
from shared.transport import call_metadata

ALICE, BOB, NEW = ("0123456789abcdef-" + name for name in ("alice", "bob", "new"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# who may call\n\nalice:{ALICE}\nbob: {BOB}\nalice:{NEW}\n")
    path.chmod(0o600)
    return path


def test_a_token_has_the_name_before_it_and_a_name_may_have_two(file: Path) -> None:
    tokens = TokenFile(file)
    assert [tokens.owner(token) for token in (ALICE, BOB, NEW, "", ALICE[:-1], f"alice:{ALICE}")] == [
        "alice", "bob", "alice", "", "", "",
    ]  # fmt: skip


def test_a_bare_token_is_of_the_owner_default_and_serves_both_sides(file: Path) -> None:
    file.write_text(ALICE + "\n")
    assert TokenFile(file).owner(ALICE) == "default"
    assert own_token(file) == ALICE
    file.write_text(f"alice:{ALICE}")
    assert own_token(file) == ALICE


def test_a_changed_file_is_read_again_and_a_broken_one_leaves_the_tokens_of_before(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = TokenFile(file)
    for broken in (f"alice:{ALICE[:5]}\n", None):
        if broken is None:
            file.unlink()
        else:
            file.write_text(broken)
        assert [tokens.owner(ALICE), tokens.owner(BOB)] == ["alice", "bob"]
    assert caplog.text.count("the tokens stay those of before") == 1
    file.write_text(f"carol:{NEW}\n")
    assert [tokens.owner(ALICE), tokens.owner(NEW)] == ["", "carol"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no token"),
        ("# nothing\n", "holds no token"),
        ("alice:short", "can be guessed, give 16 or more"),
        (f"alice:{ALICE}\nbob:{ALICE}", "line 2: bob has another owner's token"),
        (f"al ice:{ALICE}", "line 1 is neither"),
        (f"../alice:{ALICE}", "line 1 is neither"),
        (f"alice:{ALICE} {BOB}", "line 1 is neither"),
        ("x" * (2 << 20), "is it the right file"),
    ],
)
def test_an_unusable_token_file_is_refused_without_showing_a_token(file: Path, text: str, reason: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=reason) as refused:
        TokenFile(file)
    assert str(file) in str(refused.value)
    assert "0123456789abcdef" not in str(refused.value)


def test_a_trainer_needs_one_token(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds 3 tokens"):
        own_token(file)
    with pytest.raises(ConfigError, match="can't be read"):
        own_token(tmp_path / "none")
    assert own_token(None) == ""


def test_others_who_can_read_the_file_are_mentioned(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    TokenFile(file)
    assert not caplog.text
    file.chmod(0o644)
    TokenFile(file)
    assert "chmod 600" in caplog.text


def test_tokens_of_the_environment_are_no_part_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TokenFile(None).is_empty
    monkeypatch.setenv("SUBBATCH_TOKEN", ALICE)
    monkeypatch.setenv("SUBBATCH_TOKENS", f"alice:{ALICE}\nbob:{BOB}")
    config = load_config(None)
    assert ALICE not in config.model_dump_json() + repr(config)
    assert own_token(config.client.token_file) == ALICE
    assert TokenFile(config.server.token_file).owner(BOB) == "bob"
    monkeypatch.setenv("SUBBATCH_TOKENZ", "x")
    with pytest.raises(ConfigError, match="SUBBATCH_TOKENZ names no key"):
        load_config(None)


def test_a_token_goes_over_a_network_only_encrypted_or_where_that_is_asked_for(file: Path) -> None:
    file.write_text(ALICE)
    settings = {"selector": "10.0.0.1:50051", "token_file": file}
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1:50051 unencrypted.*client\.tls.*client\.insecure"):
        call_metadata(ClientConfig.model_validate(settings))
    sent = (("authorization", f"Bearer {ALICE}"),)
    for allowed in ({"tls": TlsConfig()}, {"insecure": True}, {"selector": "localhost:1"}):
        assert call_metadata(ClientConfig.model_validate(settings | allowed)) == sent
    assert call_metadata(ClientConfig(selector="10.0.0.1:50051")) == ()


def test_the_log_says_when_tokens_were_read_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tokens = TokenFile(file)
    os.utime(file, (1, 1))
    assert tokens.owner(ALICE) == "alice"
    assert "was read again" in caplog.text
    assert ServerConfig().insecure is Config().client.insecure is False
