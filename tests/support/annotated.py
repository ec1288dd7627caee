"""Annotated images and predictions as the metrics take them."""

import numpy as np

CAT, DOG = 0, 1
NAMES = ("cat", "dog")


def truth(image_id, boxes, labels, ignore=None, size=(400, 400)):
    """One image with objects; areas are those of the boxes."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return {
        "image_id": image_id,
        "boxes": boxes,
        "labels": np.asarray(labels, np.int32),
        "ignore": np.zeros(len(boxes), bool) if ignore is None else np.asarray(ignore, bool),
        "area": np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        "height": size[0],
        "width": size[1],
    }


def prediction(image_id, rows):
    """The detections of an image from rows of (score, label, box)."""
    return {
        "image_id": image_id,
        "boxes": np.array([box for _, _, box in rows], np.float32).reshape(-1, 4),
        "scores": np.array([score for score, _, _ in rows], np.float32),
        "labels": np.array([label for _, label, _ in rows], np.int32),
    }


def square(x, y=0, side=100):
    return [x, y, x + side, y + side]


def perfect(truths):
    """All objects as predictions of score 1, crowds included."""
    return [
        {key: image[key] for key in ("image_id", "boxes", "labels")}
        | {"scores": np.ones(len(image["labels"]), np.float32)}
        for image in truths
    ]


def ten_boxes():
    """(truth, predictions): four cats, two dogs, and ten detections with every kind of error.

    Boxes are 100 px wide; one moved by 50 px has an IoU of 1/3 with its object.
    """
    cats, dogs = [0, 200], [400, 600]
    first = truth("a", [square(x) for x in cats + dogs], [CAT, CAT, DOG, DOG])
    second = truth("b", [square(0), square(200)], [CAT, CAT])
    found = [
        (0.95, CAT, square(0)),  # true
        (0.90, CAT, square(2)),  # the same cat again: duplicate
        (0.85, CAT, square(250)),  # the second cat: localisation
        (0.80, CAT, square(900)),  # background
        (0.75, CAT, square(400)),  # a dog: classification
        (0.60, DOG, square(600)),  # true
        (0.55, CAT, square(150)),  # the second cat again: localisation
        (0.50, DOG, square(0)),  # the first cat, which is found: classification
    ]
    others = [
        (0.70, CAT, square(0)),  # true
        (0.65, DOG, square(250)),  # beside the fourth cat: both
    ]
    return [first, second], [prediction("a", found), prediction("b", others)]


def random_scene(num_images=30, num_classes=4, crowds=0.1, seed=0, digits=2):
    """(truth, predictions): moved, repeated, confused, invented and forgotten boxes."""
    rng = np.random.default_rng(seed)
    truths, predictions = [], []
    for i in range(num_images):
        count = rng.integers(1, 9)
        corner = rng.uniform(0, 250, (count, 2))
        side = np.exp(rng.uniform(np.log(12), np.log(150), (count, 2)))
        boxes = np.concatenate([corner, corner + side], axis=1)
        labels = rng.integers(0, num_classes, count)
        truths.append(truth(i, boxes, labels, rng.random(count) < crowds))
        chosen = rng.integers(0, count, rng.integers(0, 16))
        moved = boxes[chosen] + rng.normal(0, 0.12, (len(chosen), 4)) * np.tile(side[chosen], 2)
        moved = np.sort(moved.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        far = rng.random(len(chosen)) < 0.15
        moved[far] += 200
        label = np.where(
            rng.random(len(chosen)) < 0.2,
            rng.integers(0, num_classes, len(chosen)),
            labels[chosen],
        )
        scores = rng.random(len(chosen)).round(digits)  # with 2 digits, some are equal
        predictions.append(prediction(i, list(zip(scores, label, moved, strict=True))))
    return truths, predictions
