"""Which checkpoint of a run is the best."""

import types

import pytest

from detlab import config as config_lib
from detlab.data import shapes, wrappers
from detlab.run import evaluate as evaluate_lib

CONFIG = config_lib.load("retinanet_shapes")
SOURCE = shapes.Shapes("val", num_images=4)


class Checkpoints:
    """The best so far has the score 0.5."""

    def __init__(self, **info):
        self._info = {"step": 3, "score": 0.5, **info}

    def best(self):
        return self._info if self._info["step"] else None


class Emptied(wrappers.Filtered):
    """Images whose objects are all ignored."""

    def annotation(self, i):
        record = super().annotation(i)
        return record | {"ignore": record["ignore"] | True}


def is_best(score, checkpoints, source=SOURCE, **overrides):
    """(whether the score is the best, what was said)."""
    said = []
    setup = types.SimpleNamespace(
        config=config_lib.load("retinanet_shapes", overrides),
        eval_source=source,
        mesh=None,
        detector=types.SimpleNamespace(predict_with_bounds=None),
    )
    evaluate = object.__new__(evaluate_lib.Evaluation)
    evaluate._checkpoints = checkpoints
    evaluate._no_objects = isinstance(source, Emptied)
    evaluate._measure = evaluate_lib.measure(setup.config, source)
    return evaluate._is_best(score, types.SimpleNamespace(write=said.append)), said


MEASURE = evaluate_lib.measure(CONFIG, SOURCE)


@pytest.mark.parametrize("info", [{}, {"measure": MEASURE}])
def test_the_higher_score_is_the_best(info):
    assert is_best(0.6, Checkpoints(**info)) == (True, [])
    assert is_best(0.5, Checkpoints(**info)) == (False, [])
    assert is_best(0.1, Checkpoints(step=None)) == (True, [])


@pytest.mark.parametrize(
    "key, text",
    [
        ("eval.best_by", "AP50"),
        ("eval.rectangles", "32"),
        ("eval.views", "image,mirror"),
        ("data.eval_shrink", "area"),
        ("model.score_threshold", "0.3"),
        ("model.nms_iou", "0.7"),
    ],
)
def test_a_score_that_was_measured_otherwise_is_not_compared(key, text):
    assert is_best(0.1, Checkpoints(measure=MEASURE), **{key: text}) == (
        True,
        [
            "the best checkpoint so far, of step 3, was measured otherwise"
            f" ({key}); this one replaces it"
        ],
    )


def test_a_score_on_other_images_is_not_compared():
    other = shapes.Shapes("val", num_images=3)
    best, said = is_best(0.1, Checkpoints(measure=MEASURE), source=other)
    assert best and said[0].endswith("measured otherwise (images); this one replaces it")


def test_without_objects_the_last_checkpoint_is_the_best():
    source = Emptied(SOURCE, range(4))
    assert is_best(-1.0, Checkpoints(score=-1.0), source) == (True, [])


@pytest.mark.parametrize("key, text", [("eval.batch_size", "3"), ("train.log_every", "7")])
def test_what_changes_no_figure_is_no_part_of_the_measure(key, text):
    config = config_lib.load("retinanet_shapes", {key: text})
    assert evaluate_lib.measure(config, SOURCE) == MEASURE
