"""The folder of a server's journals belongs to one server, which says why where it can't be had."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from selector_server.server import _sole_owner
from shared.errors import JournalError


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder on a mount that is read only, which takes root."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=4k", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip(f"nothing can be mounted here: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def require_refusal(folder: Path, reason: str) -> None:
    with pytest.raises(JournalError) as refused, _sole_owner(folder):
        pytest.fail("the folder can't be had")
    assert f"journal folder {folder} can't be used: " in str(refused.value)
    assert reason in str(refused.value)
    assert str(refused.value).endswith("may write to, or choose another server.journal")


@pytest.mark.parametrize("below", ["", "new"])
def test_a_journal_on_a_read_only_mount_is_refused_with_the_remedy(read_only: Path, below: str) -> None:
    require_refusal(read_only / below, "Read-only file system")


def test_a_journal_where_there_can_be_no_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    require_refusal(tmp_path / "file", "File exists")
    require_refusal(tmp_path / "file" / "journal", "Not a directory")
    require_refusal(tmp_path / ("long" * 100), "File name too long")


def test_a_folder_belongs_to_one_server_until_it_ends(tmp_path: Path) -> None:
    with (
        _sole_owner(tmp_path),
        pytest.raises(JournalError, match="server that is running: stop it"),
        _sole_owner(tmp_path),
    ):
        pytest.fail("the folder can't be had twice")
    with _sole_owner(tmp_path):
        pass


def test_what_fails_while_a_server_runs_is_not_blamed_on_its_folder(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="certificate"), _sole_owner(tmp_path):
        raise PermissionError("certificate")
