"""What all tools share: the folder they write, the detector they look at, and their list."""

import json

import numpy as np
import pytest
from matplotlib import figure as figure_lib

from detlab import __main__ as command
from detlab import cli, environment, errors
from detlab import config as config_lib
from detlab.tools import frame


def arguments(tmp_path, *more):
    return ["--config", "retinanet_shapes", "--output", str(tmp_path / "out"), *more]


def test_the_json_has_results_settings_inputs_and_the_hash_of_the_config(tmp_path, capsys):
    words = arguments(tmp_path, "--seed", "3", "--config.optim.lr=0.5")
    args, overrides = frame.parse(words, cli.tool("speed", ""))
    config = frame.config_of(args, overrides)
    assert config.optim.lr == 0.5
    output = frame.Output("speed", args, config, {"images": 2})
    figure = figure_lib.Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    output.figure(figure, "line")
    output.close({"ms": 1.5}, "a table")
    assert capsys.readouterr().out == f"a table\n{tmp_path}/out/speed.json\n"
    content = json.loads((tmp_path / "out/speed.json").read_text())
    assert content["results"] == {"ms": 1.5} and content["inputs"] == {"images": 2}
    assert content["settings"]["seed"] == 3 and content["config_hash"] == environment.config_hash(
        config
    )
    assert (tmp_path / "out/line.png").read_bytes().startswith(b"\x89PNG")
    other = frame.config_of(*frame.parse(arguments(tmp_path), cli.tool("speed", "")))
    frame.Output("speed", args, other).close({}, "")
    assert (
        json.loads((tmp_path / "out/speed.json").read_text())["config_hash"]
        != content["config_hash"]
    )


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--limit", "0"], "--limit is 0; it must be at least 1."),
        (["--seed", "-1"], "--seed is -1; it must be at least 0."),
    ],
)
def test_flags_out_of_range_are_refused(tmp_path, more, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        frame.parse(arguments(tmp_path, *more), cli.tool("speed", ""))


def test_an_output_that_is_a_file_and_a_missing_detector_are_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(errors.UserError, match="is a file; give a folder"):
        frame.parse(arguments(tmp_path), cli.tool("speed", ""))
    args, overrides = frame.parse(["--output", str(tmp_path)], cli.tool("speed", ""))
    with pytest.raises(errors.UserError, match="no detector given; give --workdir or --config"):
        frame.config_of(args, overrides)


def test_every_module_with_a_main_is_a_tool_with_one_line(capsys):
    with pytest.raises(errors.UserError, match="no tool 'fit_anchor'. Did you mean fit_anchors?"):
        command._tools(["fit_anchor"])
    command._tools(["--help"])
    told = capsys.readouterr().out
    assert "fit_anchors  " in told and "frame " not in told
    assert all(line.endswith(".") for line in command._tool_lines().values())


def test_numbers_are_rounded_for_json_and_nan_becomes_null():
    values = {"a": np.float32([1 / 3, np.nan]), "b": (np.int32(7), True, "x", None, np.inf)}
    assert frame.rounded(values) == {"a": [0.333333, None], "b": [7, True, "x", None, None]}
    assert frame.rounded(123456789.0, 3) == 123000000.0
    json.dumps(frame.rounded(values), allow_nan=False)


def test_the_first_images_of_a_source_come_once_each_without_changes(tmp_path):
    config = config_lib.load("retinanet_shapes", {"data.augment.photometric": "1.0"})
    source = frame.open_data(config, "train", limit=3)
    assert len(source) == 3 and len(frame.open_data(config, "eval")) > 3
    batches = list(frame.batches(source, config, "train", 2))
    assert [batch.real.tolist() for batch in batches] == [[True, True], [True, False]]
    for number, batch in enumerate(batches):
        for row in np.flatnonzero(batch.real):
            record = source[2 * number + row]
            np.testing.assert_array_equal(batch.images[row], record["image"])
            boxes = batch.boxes[row][batch.valid[row]]
            np.testing.assert_array_equal(boxes, record["boxes"])
