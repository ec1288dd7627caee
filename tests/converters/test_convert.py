"""The command line: its modes, its flags and the mistakes that a user can make."""

import re
import subprocess
import sys

import conversions
import pytest

from detlab import errors
from detlab.converters import convert, download, families, named


def test_a_url_is_fetched_first(config_file, mmdet_file, shapes, tmp_path, monkeypatch):
    asked = []

    def fetch(url, sha256):
        asked.append((url, sha256))
        return mmdet_file[0]

    monkeypatch.setattr(download, "fetch", fetch)
    url = "https://127.0.0.1/retinanet.pth"
    conversions.run(config_file, url, tmp_path / "weights", "--sha256", "0" * 8)
    assert asked == [(url, "0" * 8)]
    text = conversions.refused(config_file, mmdet_file[0], tmp_path / "other", "--sha256", "0" * 8)
    assert "--sha256 is for URLs" in text


def test_inspect_prints_what_a_file_holds(mmdet_file, capsys):
    convert.main(["--inspect", str(mmdet_file[0])])
    printed = capsys.readouterr().out
    assert re.search(r"classes +2: cat, dog", printed)
    assert re.search(r"backbone.conv1.weight +float32 +8 x 3 x 7 x 7", printed)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--input", "a.pth"], "--output is missing: use --input FILE"),
        (["--input", "a.pth", "--output", "b"], "--config is missing"),
        (["--reverse", "--input", "a", "--output", "b.onnx"], "must end with .pth, .pt or"),
        (["--reverse", "--input", "absent", "--output", "b.pth"], "absent does not exist"),
        (
            ["--reverse", "--reset_classes", "--input", "a", "--output", "b.pth"],
            "--reset_classes cannot be used with --reverse",
        ),
        (["--inspect", "a", "--input", "b"], "--input cannot be used with --inspect"),
        (
            ["--reverse", "--input", "a", "--output", "b.pth", "--config.seed=1"],
            "--config.seed needs --config EXPERIMENT",
        ),
        (["--inspect", "absent.pth"], "absent.pth: cannot be read: No such file"),
        (["--inspect", "a.weights", "--cfg", "absent.cfg"], "absent.cfg"),
    ],
)
def test_flags_that_do_not_go_together_get_a_sentence(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UserError, match=re.escape(words)):
        convert.main(arguments)
    assert not list(tmp_path.iterdir())


def test_command_line_prints_one_sentence_and_exits_with_2(config_file, repository, tmp_path):
    command = [sys.executable, "-m", "converters.convert", "--config", str(config_file)]
    command += ["--input", str(tmp_path / "absent.pth"), "--output", str(tmp_path / "weights")]
    for more in ([], ["--source", "keras"]):
        done = subprocess.run(
            [*command, *more], cwd=repository, check=False, capture_output=True, text=True
        )
        assert done.returncode == 2 and not done.stdout and "Traceback" not in done.stderr
        assert ("invalid choice: 'keras'" if more else "error: ") in done.stderr


def test_source_can_name_the_family_of_every_source():
    assert {source.family for source in named.SOURCES} | {"darknet"} == {*families.NAMES}
