"""Bearer tokens: who may call. One `name:token` a line, where the name is the owner of the runs opened with it.

A line without a colon is a token of the name `default`; empty lines and those that begin with # say nothing. A name may
stand on several lines, so that an old and a new token are both good while they are exchanged. Of a server's tokens only
hashes are kept in memory, and no error here shows one.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
from pathlib import Path

from shared.config import TOKEN_VARIABLE, TOKENS_VARIABLE
from shared.errors import ConfigError

logger = logging.getLogger(__name__)

MIN_TOKEN_LENGTH = 16
_MAX_FILE_BYTES = 1 << 20
_DEFAULT_NAME = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# What an HTTP header can carry.
_TOKEN = re.compile(r"[!-~]+")
_HOW_TO = "`openssl rand -hex 32` makes one"


class TokenTable:
    """The tokens that a server knows, by hash."""

    def __init__(self, text: str, *, source: str) -> None:
        """Read the lines of a token file.

        Args:
            text: The lines.
            source: Where they come from, for errors.

        Raises:
            ConfigError: no token, one that is too short to be secret, or a line that is neither.
        """
        self._names: dict[bytes, str] = {}
        for number, name, token in _lines(text, source):
            if len(token) < MIN_TOKEN_LENGTH:
                raise ConfigError(
                    f"{source}, line {number}: a token of {len(token)} characters can be guessed, give "
                    f"{MIN_TOKEN_LENGTH} or more: {_HOW_TO}"
                )
            if self._names.setdefault(_digest(token), name) != name:
                raise ConfigError(f"{source}, line {number}: {name} has another owner's token: give each its own")
        if not self._names:
            raise ConfigError(f"{source} holds no token: write one `name:token` a line; {_HOW_TO}")

    def owner(self, token: str) -> str:
        """The name of a token; empty where it isn't known. Takes as long for every token."""
        given, found = _digest(token), ""
        for digest, name in self._names.items():
            if hmac.compare_digest(digest, given):
                found = name
        return found


class TokenFile:
    """A token file that is read again when it has changed; an environment variable's tokens never change."""

    def __init__(self, path: Path | None) -> None:
        """Read the file, or the environment where there is none.

        Raises:
            ConfigError: the file can't be read, or holds no usable token.
        """
        self._path = path
        self._seen = _stamp(path)
        self._table = self._read()

    @property
    def is_empty(self) -> bool:
        """Whether no token was configured, so that anybody may call."""
        return self._table is None

    def owner(self, token: str) -> str:
        """The name of a token as the file says now; empty where it isn't known."""
        self._refresh()
        return self._table.owner(token) if self._table else ""

    def _read(self) -> TokenTable | None:
        if self._path is not None:
            return TokenTable(read_small(self._path), source=f"token file {self._path}")
        text = os.environ.get(TOKENS_VARIABLE)
        return None if text is None else TokenTable(text, source=f"environment variable {TOKENS_VARIABLE}")

    def _refresh(self) -> None:
        """Take up a changed file; one that can't be used is logged, and the tokens of before stay good."""
        try:
            stamp = _stamp(self._path)
            if stamp == self._seen:
                return
            self._seen, self._table = stamp, self._read()
        except ConfigError as error:
            if self._seen is not None:
                logger.error("the tokens stay those of before: %s", error)
            self._seen = None
        else:
            logger.info("token file %s has changed and was read again", self._path)


def own_token(path: Path | None) -> str:
    """The token that a client sends: a file's, else the environment's; empty where there is neither.

    Raises:
        ConfigError: the file can't be read, or doesn't hold exactly one token.
    """
    if path is None and TOKEN_VARIABLE not in os.environ:
        return ""
    source = f"environment variable {TOKEN_VARIABLE}" if path is None else f"token file {path}"
    tokens = [token for _, _, token in _lines(os.environ[TOKEN_VARIABLE] if path is None else read_small(path), source)]
    if len(tokens) != 1:
        raise ConfigError(f"{source} holds {len(tokens)} tokens: give the trainers one token, their own")
    return tokens[0]


def read_small(path: Path) -> str:
    """The text of a token file.

    Raises:
        ConfigError: it can't be read, or is too large to be one.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
            if os.fstat(file.fileno()).st_mode & (stat.S_IROTH | stat.S_IWOTH):
                logger.warning("token file %s can be read by other users of this machine: chmod 600 it", path)
    except OSError as error:
        raise ConfigError(f"token file {path} can't be read: {error.strerror}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"token file {path} has more than {_MAX_FILE_BYTES} bytes: is it the right file?")
    return data.decode(errors="replace")


def _lines(text: str, source: str) -> list[tuple[int, str, str]]:
    """The number, name and token of every line that holds one."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, token = line.strip().rpartition(":")
        name = name.strip() if colon else _DEFAULT_NAME
        if not _NAME.fullmatch(name) or not _TOKEN.fullmatch(token.strip()):
            raise ConfigError(
                f"{source}, line {number} is neither `name:token` nor a token: a name has up to 64 letters, digits, "
                f"., _ and -, a token no spaces and no colon; {_HOW_TO}"
            )
        found.append((number, name, token.strip()))
    return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced.

    Raises:
        ConfigError: the file can't be seen.
    """
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError as error:
        raise ConfigError(f"token file {path} can't be read: {error.strerror}") from error
    return status.st_mtime_ns, status.st_size, status.st_ino
