"""One run per folder."""

import errno
import fcntl
import json
import os
import platform
import re
import subprocess
import sys

import jax
import pytest

from detlab import errors
from detlab.run import lock
from detlab.run import workdir as workdir_lib


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch):
    monkeypatch.setattr(lock, "WAIT_S", 0.0)


def refusal(folder):
    with pytest.raises(errors.UserError) as error:
        with lock.held(folder):
            pass
    return str(error.value)


def test_a_second_run_is_refused_with_host_process_and_start(tmp_path):
    folder = tmp_path / "run"
    with lock.held(folder):
        since = json.loads((folder / "lock").read_text())["since"]
        assert refusal(folder) == (
            f"{folder} is in use by process {os.getpid()} on {platform.node()}, since {since}; wait"
            " until that run ends, stop it, or give another --workdir."
        )
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", since)
    with lock.held(folder):  # free again
        pass


@pytest.mark.parametrize("holder", ["", "{", "[1]", "{}"])
def test_a_holder_that_has_not_written_its_name_yet(holder, tmp_path):
    with lock.held(tmp_path):
        (tmp_path / "lock").write_text(holder)
        assert refusal(tmp_path).startswith(f"{tmp_path} is in use by another process; wait until")


def test_nothing_stays_behind_but_what_the_run_wrote(tmp_path):
    with lock.held(tmp_path / "runs" / "a" / "b"):
        assert (tmp_path / "runs" / "a" / "b" / "lock").exists()
    assert not any(tmp_path.iterdir())
    with lock.held(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a" / "config.json").touch()
    assert [p.name for p in (tmp_path / "runs" / "a").iterdir()] == ["config.json"]


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = """
import pathlib, sys, time
from detlab.run import lock
with lock.held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert f"in use by process {process.pid} on" in refusal(tmp_path)
        process.kill()
        process.wait()
    assert (tmp_path / "lock").exists()
    with lock.held(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()


def test_a_lock_that_its_holder_has_just_removed_does_not_count(tmp_path, monkeypatch):
    """Between opening and locking, the holder ends and a third process starts."""
    flock, third = fcntl.flock, []

    def late(file, how):
        if not third:
            (tmp_path / "lock").unlink()
            third.append(lock.held(tmp_path))
            flock(file, how)
            third[0].__enter__()
        else:
            flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert f"in use by process {os.getpid()}" in refusal(tmp_path)
    third[0].__exit__(None, None, None)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with lock.held(tmp_path):
        pass
    assert capsys.readouterr().out == (
        f"{tmp_path} is on a file system without locks (No locks available), so nothing would stop"
        " a second run in it\n"
    )


def test_only_the_first_of_several_processes_holds_the_lock(tmp_path, monkeypatch):
    workdir = workdir_lib.Workdir(tmp_path)
    with workdir.lock():
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with workdir.lock():
            pass
        assert (tmp_path / "lock").exists()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(errors.UserError, match=f"cannot write {tmp_path}/file/run/lock: Not a"):
        with lock.held(tmp_path / "file" / "run"):
            pass
