"""`errors.run_main`: what programs print, and how they end."""

import io
import os
import subprocess
import sys

import pytest

from detlab import errors


def printed(monkeypatch, encoding, text, **options):
    """The bytes that a program has written to a terminal of an encoding."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding, **options))
    errors.run_main(lambda _: print(text))
    return raw.getvalue()


@pytest.mark.parametrize(
    "encoding, text, shown",
    [
        ("ascii", "éléphant 象 🐘", rb"\xe9l\xe9phant \u8c61 \U0001f418"),
        ("latin-1", "éléphant 象", b"\xe9l\xe9phant \\u8c61"),
        ("cp1252", "čáp", b"\\u010d\xe1p"),
        ("cp932", "象 é", b"\x8f\xdb \\xe9"),
        ("utf-8", "caf\udce9.jpg", rb"caf\udce9.jpg"),  # a file name that is not UTF-8
        ("utf-8", "象", "象".encode()),
    ],
)
def test_what_a_terminal_cannot_show_is_escaped(encoding, text, shown, monkeypatch):
    assert printed(monkeypatch, encoding, text) == shown + b"\n"


def test_an_error_sentence_is_escaped_too(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, "ascii", errors="strict"))

    def main(_):
        raise errors.UserError("image file é.jpg does not exist.")

    with pytest.raises(SystemExit) as end:
        errors.run_main(main)
    sys.stderr.flush()
    assert end.value.code == 2
    assert raw.getvalue() == b"error: image file \\xe9.jpg does not exist.\n"


CLOSED = """
import sys
from detlab import errors

def main(arguments):
    if arguments[0] == "wrong":
        print("said", file=sys.stderr)
        raise errors.UserError("no.")
    if arguments[0] == "help":
        print("usage")
        sys.exit(0)
    for _ in range(int(arguments[0])):
        print("line", flush=arguments[-1] == "flush")

errors.run_main(main)
"""


@pytest.mark.parametrize(
    "words, error, status",
    [
        (["1"], "", 1),  # fits into the buffer, so it is written at the end
        (["100000"], "", 1),
        (["3", "flush"], "", 1),
        (["help"], "", 1),
        (["wrong"], "said\nerror: no.\n", 2),  # nothing is lost on stdout
    ],
)
def test_a_program_whose_reader_has_gone_ends_quietly(words, error, status, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", CLOSED, *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.stderr, done.returncode) == (error, status)


def test_another_broken_pipe_is_not_silent(monkeypatch):
    def main(_):
        raise BrokenPipeError("a process that reads data")

    with pytest.raises(BrokenPipeError, match="a process that reads data"):
        errors.run_main(main)


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-"])
def test_a_program_without_output_runs(redirection, tmp_path):
    code = "from detlab import errors; errors.run_main(lambda _: open('done', 'w').close())"
    command = f'"{sys.executable}" -c "{code}" {redirection}'
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, shell=True, cwd=tmp_path, env=environment).returncode == 0
    assert (tmp_path / "done").exists()


def test_a_full_disk_under_the_output_is_a_sentence():
    code = "from detlab import errors; errors.run_main(lambda _: print('figures'))"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    sentence = "error: cannot write the output: No space left on device.\n"
    assert (done.stderr, done.returncode) == (sentence, 2)


def test_ctrl_c_while_a_program_imports_has_no_traceback():
    code = """
import argparse, os, signal
from detlab import cli, errors
cli.answer_first(argparse.ArgumentParser())
errors.run_main(lambda _: None)
cli.answer_first(argparse.ArgumentParser())
os.kill(os.getpid(), signal.SIGINT)
signal.pause()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("", "\ninterrupted\n", 130)


def test_ctrl_c_in_a_program_has_no_traceback():
    code = """
import os, signal, sys
from detlab import errors
def main(_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    finally:
        print("closed")
errors.run_main(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("closed\n", "\ninterrupted\n", 130)


def test_leave_ends_at_once_with_its_word_and_status():
    code = (
        "import atexit; from detlab import errors; print('said');"
        " atexit.register(print, 'end'); errors.leave(130, 'interrupted')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("said\n", "\ninterrupted\n", 130)
