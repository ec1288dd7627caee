"""The command that fits anchors: the config takes its output, and the anchors fit better."""

import json

import numpy as np
import pytest

from detlab import config as config_lib
from detlab import contract, errors
from detlab.data import anchor_fit
from detlab.experiments import common
from detlab.tools import fit_anchors

EXPERIMENT = "experiments/yolov3_voc.py"


@pytest.fixture(scope="module")
def arguments(shared_dir):
    return [
        f"--config={EXPERIMENT}",
        f"--config.data.root={shared_dir / 'data' / 'bccd'}",
        "--config.data.class_names=('RBC','WBC','Platelets')",
        "--config.data.train_splits=('trainval',)",
        "--config.model.num_classes=3",
        "--generations=20",
    ]


def test_fitted_anchors_are_printed_for_the_config_and_fit_better(arguments, tmp_path, capsys):
    fit_anchors.main([*arguments, f"--output={tmp_path / 'anchors.json'}"])
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "anchors.json").read_text())
    assert result["fitted"]["fitness"] > result["now"]["fitness"] + 0.1
    assert result["objects"] == 3941 and result["ratio"] == 4.0
    for name in ("now", "fitted"):
        figures = anchor_fit.Fit(**result[name])
        line = f"recall {figures.best_recall:.4f}, {figures.anchors_per_object:.2f} anchors"
        assert line in printed and f"fitness {figures.fitness:.4f}" in printed
    # The printed line is valid for the config reader and for the detector.
    (line,) = [x for x in printed.splitlines() if x.startswith("--config.model.anchor_sizes=")]
    key, value = line.removeprefix("--config.").split("=", 1)
    config = config_lib.load(EXPERIMENT, {key: value.strip('"')})
    assert np.shape(config.model.anchor_sizes) == (3, 3, 2)
    np.testing.assert_array_equal(np.reshape(config.model.anchor_sizes, (9, 2)), result["anchors"])
    contract.build(config)


def test_the_anchors_of_a_cfg_are_found_and_written_as_its_line():
    config = common.base("darknet")
    config.model.cfg = "yolov3-tiny"
    anchors, levels = fit_anchors.current(config)
    assert anchors.shape == (6, 2) and levels is None
    np.testing.assert_array_equal(anchors[[0, -1]], [(10, 14), (344, 319)])
    written = fit_anchors.as_config(anchors, levels).splitlines()[-1]
    assert written == "anchors = 10,14,  23,27,  37,58,  81,82,  135,169,  344,319"


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--anchors=8"], "--anchors is 8; it must be at least 1 and a multiple of .* levels, 3."),
        (["--anchors=9999"], "train data: 3941 objects are 2 px or larger, too few for 9999"),
        (["--ratio=1"], "--ratio must be above 1, and --generations at least 0."),
        (["--generations=-1"], "--ratio must be above 1, and --generations at least 0."),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, more, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        fit_anchors.main([*arguments, *more])


def test_a_detector_without_sizes_of_anchors_is_refused(arguments):
    with pytest.raises(errors.UserError, match="detector retinanet has no list of anchor sizes"):
        fit_anchors.main(["--config=experiments/retinanet_shapes.py"])
