"""The tool that draws losses: all of detlab's, values by hand, and the gradients of a detector."""

import argparse
import importlib
import inspect
import json
import math
import pkgutil

import numpy as np
import pytest

from detlab import errors
from detlab import losses as losses_package
from detlab.tools import loss_functions, losses

OPTIONS = loss_functions.Options()
TINY = ["--config.model.num_classes=4", "--config.train.steps=1", "--limit=2"]


def test_every_public_function_of_the_losses_is_drawn_or_left_out_with_a_reason():
    public = set()
    for found in pkgutil.iter_modules(losses_package.__path__):
        module = importlib.import_module(f"detlab.losses.{found.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                public.add(f"{found.name}.{name}")
    drawn = {
        f"{f.__module__.rpartition('.')[2]}.{f.__name__}"
        for loss in loss_functions.LOSSES.values()
        for f in loss.functions
    }
    assert not drawn & loss_functions.LEFT_OUT.keys()
    assert drawn | loss_functions.LEFT_OUT.keys() == public


def test_values_and_gradients_are_those_computed_by_hand():
    p = 0.9
    logit = math.log(p / (1 - p))
    background = OPTIONS._replace(label=0)
    half = OPTIONS._replace(quality=0.5)
    classes = {
        ("bce", OPTIONS): (-math.log(p), p - 1),
        ("ce", OPTIONS): (-math.log(p), p - 1),
        ("bce", background): (-math.log(p), p - 1),  # x is the logit of the true class
        ("focal", OPTIONS): (-0.25 * 0.1**2 * math.log(p), None),
        ("focal", background): (-0.75 * 0.1**2 * math.log(p), None),
        ("focal", OPTIONS._replace(gamma=0.0, alpha=1.0)): (-math.log(p), p - 1),
        ("gaussian_focal", OPTIONS): (-(0.1**2) * math.log(p), None),
        ("location", background): (-0.1 * 0.75 * 0.1**2 * math.log(p), None),
        ("qfl", half): (0.4**2 * -0.5 * (math.log(p) + math.log(1 - p)), None),
        ("varifocal", half): (0.5 * -0.5 * (math.log(p) + math.log(1 - p)), 0.5 * (p - 0.5)),
        ("distribution", half): (-0.5 * (math.log(p) + math.log(1 - p)), p - 0.5),
        ("place", half): (-0.5 * (math.log(p) + math.log(1 - p)), p - 0.5),
    }
    shift = {  # half a side: the IoU is 1 / 3, and the box around both is 1.5 sides wide
        "l1": (0.5, 1.0),
        "smooth_l1": (0.125, 0.5),
        "half_square": (0.125, 0.5),
        "iou_linear": (2 / 3, 2 / 1.5**2),
        "iou_log": (math.log(3), 2 / (0.5 * 1.5)),
        "giou": (2 / 3, 2 / 1.5**2),
        "diou": (2 / 3 + 0.25 / 3.25, None),
        "darknet_iou": (2 / 3, 2 / 1.5**2),
        "darknet_giou": (2 / 3, 2 / 1.5**2),
    }
    boxes = {(name, OPTIONS): values for name, values in shift.items()}
    embeddings = {("pull", OPTIONS): (0.125, 0.5), ("push", OPTIONS): (0.5, -1.0)}
    for wanted, x in ((classes, logit), (boxes, 0.5), (embeddings, 0.5)):
        curves = loss_functions.curves(list(wanted), np.array([x]))
        for key, curve, (value, slope) in zip(wanted, curves, wanted.values()):
            assert curve.value[0] == pytest.approx(value, rel=2e-5), key
            if slope is not None:
                assert curve.gradient[0] == pytest.approx(slope, rel=2e-4), key


def test_a_rare_gradient_norm_weighs_more_in_ghm():
    logits = np.log(np.array([0.15, 0.95]) / np.array([0.85, 0.05]))
    ghm, bce = loss_functions.curves([("ghm", OPTIONS), ("bce", OPTIONS)], logits)
    hard, easy = ghm.value / bce.value
    assert hard > 5 and easy < 0.3


def test_another_gamma_changes_the_numbers_and_what_is_drawn():
    wanted = [("focal", OPTIONS), ("focal", OPTIONS._replace(gamma=5.0))]
    found = losses.drawn(wanted, "classification", "probability", 9)
    assert [curve["loss"] for curve in found["curves"]] == ["focal", "focal gamma 5"]
    two, five = (row["value"] for row in found["table"]["rows"])
    ratio = [0.99**3, 0.9**3, 0.5**3, 0.1**3, 0.01**3]
    np.testing.assert_allclose(five / two, ratio, rtol=1e-3)
    figure = losses.draw(found)
    left, right = figure.axes
    for axes, key in ((left, "value"), (right, "slope")):
        for line, curve in zip(axes.lines, found["curves"]):
            np.testing.assert_array_equal(line.get_xdata(), (np.arange(9) + 0.5) / 9)
            np.testing.assert_allclose(line.get_ydata(), curve[key])
    assert (left.lines[0].get_ydata() > left.lines[1].get_ydata()).all()


def test_against_the_iou_a_box_loss_is_a_line():
    wanted = [("iou_linear", OPTIONS)]
    (curve,) = losses.drawn(wanted, "box", "iou", 31)["curves"]
    np.testing.assert_allclose(curve["value"], 1 - np.asarray(curve["x"]), atol=2e-6)
    assert curve["x"][0] == pytest.approx(1) and curve["x"][10] == pytest.approx(1 / 3)


def test_examples_are_read_from_the_gradients_of_maps():
    values = np.log([[0.9 / 0.1, 0.2 / 0.8, 0.5 / 0.5, 0.7 / 0.3]]).reshape(1, 1, 1, 4)
    slopes = np.array([-0.1, 0.3, 0.0, 0.6]).reshape(1, 1, 1, 4)
    found, softmax = losses.read(values, slopes, num_classes=3)
    assert not softmax
    np.testing.assert_allclose(found.norm, [0.1, 0.2, 0.7])
    assert found.positive.tolist() == [True, False, False]
    counted = losses.count([found])
    assert counted["positive"]["examples"] == 1 and counted["negative"]["examples"] == 2
    assert counted["positive"]["share"] == pytest.approx(0.1)
    assert counted["negative"]["shares"][4] == pytest.approx(0.3)  # norms of 0.2 to 0.25
    assert counted["easy_examples"] == 0
    twice = losses.count([found, found])
    assert twice["negative"]["examples"] == 4
    np.testing.assert_allclose(twice["negative"]["shares"], counted["negative"]["shares"])
    # Of a softmax over three classes and the background, gradients add up to 0.
    slopes = np.array([-0.9, 0.3, 0.3, 0.3]).reshape(1, 1, 1, 4)
    values = np.log([0.1, 0.3, 0.3, 0.3]).reshape(1, 1, 1, 4) + 5
    found, softmax = losses.read(values, slopes, num_classes=3)
    assert softmax
    np.testing.assert_allclose(found.norm, [0.9, 0.3, 0.3, 0.3])


def run(tmp_path, *words):
    losses.main([*words, f"--output={tmp_path}"])
    return json.loads((tmp_path / "losses.json").read_text())["results"]


def test_the_gradients_of_a_detector_are_counted_on_training_images(tmp_path):
    words = ["--losses=focal", "--points=5", "--config=retinanet_shapes:tiny", *TINY]
    found = run(tmp_path, *words)["gradients"]
    assert found["term"] == "loss/cls" and found["scores"] == "sigmoid" and found["images"] == 2
    assert found["positive"]["examples"] > 0
    assert sum(found["negative"]["counts"]) == found["negative"]["examples"] > 1000
    shares = [found[name]["share"] for name in ("positive", "negative")]
    assert sum(shares) == pytest.approx(1)
    # The initial probability is 0.01: all background is easy, and objects are not.
    assert found["easy_share"] == pytest.approx(shares[1], rel=1e-3)
    assert (tmp_path / "gradients.png").stat().st_size > 5000


@pytest.mark.slow
def test_a_softmax_is_recognised_and_a_second_stage_is_refused(tmp_path):
    words = ["--losses=ce", "--points=5", *TINY]
    assert run(tmp_path, "--config=ssd_shapes:tiny", *words)["gradients"]["scores"] == "softmax"
    two_stages = ["--config=faster_rcnn_shapes:tiny", *words]
    assert run(tmp_path, *two_stages)["gradients"]["term"] == "loss/rpn_cls"
    sentence = "loss/cls of faster_rcnn reads no map of scores .* loss/rpn_cls"
    with pytest.raises(errors.UserError, match=sentence):
        run(tmp_path, *two_stages, "--term=loss/cls")


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--losses=focl"], "--losses: there is no loss 'focl'. Did you mean focal?"),
        (["--losses=focal,giou"], "focal is a classification loss and giou a box loss; draw them"),
        (["--losses=giou", "--x=logit"], "--x is logit, but box losses can be drawn against shift"),
        (["--losses=bce", "--gamma=2"], "--gamma changes none of bce; it is for focal, qfl"),
        (["--gamma=two"], "--gamma is 'two'; it must be numbers separated by commas."),
        (["--gamma=-1"], "--gamma has -1; numbers must be at least 0."),
        (["--quality=2"], "--quality has 2; numbers must be at least 0 and at most 1."),
        (["--label=0", "--quality=0.5"], "--quality is the target of an object; leave it out"),
        (["--points=1"], "--points is 1; it must be at least 2."),
        (["--term=loss/cls"], "--term is that of a detector; give --workdir or --config too."),
        (["--config.seed=1"], "--config.seed needs --config; add it."),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, words, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        losses.main([*words, f"--output={tmp_path}"])


def test_lists_of_options_are_combined():
    args = argparse.Namespace(
        losses="focal,bce", family="box", label=1, alpha=None, beta=None, quality=None
    )
    args.gamma, args.scales = "0,2", "1"
    wanted, family = losses.chosen(args)
    assert family == "classification"
    assert [(name, options.gamma) for name, options in wanted] == [
        ("focal", 0.0),
        ("focal", 2.0),
        ("bce", None),
    ]
