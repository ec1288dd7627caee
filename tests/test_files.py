"""Atomic writing of files."""

import errno
import pathlib
import subprocess
import sys

import pytest

from detlab import errors, files


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "config.json"
    files.write_text(path, "first")
    write_text = pathlib.Path.write_text

    def disk_full(self, text, encoding):
        write_text(self, text[:2], encoding)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", disk_full)
    with pytest.raises(errors.UserError, match="config.json: No space left on device"):
        files.write_text(path, "second")
    assert path.read_text() == "first"
    monkeypatch.undo()
    files.write_text(path, "third")
    assert path.read_text() == "third" and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_folder_is_not_written_to(tmp_path):
    with pytest.raises(errors.UserError, match=f"cannot write {tmp_path}: Is a directory"):
        files.write_json(tmp_path, {})


def test_a_stream_is_written_to_and_not_replaced(tmp_path):
    code = "from detlab import files; files.write_text('/dev/stdout', 'figures')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "figures"
