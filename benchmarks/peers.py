"""One peer, measured in a Python that has it; `benchmarks.models` runs this file as a script.

    python benchmarks/peers.py torchvision/fcos_resnet50_fpn HEIGHT WIDTH BATCH REPEATS FOLDER

Prints a JSON line of ms an image.  A missing package ends it with one line.  Weights are random; a
torchvision model normalises as detlab's does, and neither resizes.
"""

import importlib
import json
import statistics
import sys
import time

import numpy as np


def main(peer, height, width, batch, repeats, folder):
    """The figures of a peer as a dict."""
    package, _, name = peer.partition("/")
    height, width, batch, repeats = map(int, (height, width, batch, repeats))
    if package == "torchvision":
        return torchvision(name, height, width, batch, repeats)
    return opencv(height, width, batch, repeats, folder)


def torchvision(name, height, width, batch, repeats):
    torch, vision = load("torch"), load("torchvision")
    build = getattr(vision.models.detection, name)
    sizes = dict(min_size=min(height, width), max_size=max(height, width))
    model = build(weights=None, weights_backbone=None, num_classes=81, **sizes)
    images = list(torch.rand(batch, 3, height, width))
    rng = np.random.default_rng(0)
    targets = []
    for _ in range(batch):
        corner = rng.uniform(0, 0.6, (8, 2)) * (width, height)
        boxes = np.concatenate(
            [corner, corner + rng.uniform(0.1, 0.4, (8, 2)) * (width, height)], 1
        )
        labels = torch.from_numpy(rng.integers(1, 81, 8))
        targets.append({"boxes": torch.from_numpy(boxes).float(), "labels": labels})
    model.eval()
    with torch.no_grad():
        predict = milliseconds(lambda: model(images), repeats)
    model.train()

    def step():
        model.zero_grad()
        sum(model(images, targets).values()).backward()

    versions = {"torch": torch.__version__, "torchvision": vision.__version__}
    train = milliseconds(step, repeats)
    return {"predict_ms": predict / batch, "train_ms": train / batch, **versions}


def opencv(height, width, batch, repeats, folder):
    cv2 = load("cv2")
    if not hasattr(cv2.dnn, "readNetFromDarknet") or int(cv2.__version__.split(".")[0]) >= 5:
        sys.exit(f"OpenCV {cv2.__version__} reads no darknet networks; versions before 5 do")
    net = cv2.dnn.readNetFromDarknet(f"{folder}/net.cfg", f"{folder}/net.weights")
    outputs = net.getUnconnectedOutLayersNames()
    images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)

    def predict():
        net.setInput(cv2.dnn.blobFromImages(list(images), 1 / 255, (width, height)))
        net.forward(outputs)

    return {"predict_ms": milliseconds(predict, repeats) / batch, "opencv": cv2.__version__}


def load(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        sys.exit(f"{name} is not installed")


def milliseconds(function, repeats):
    """The median of the repeats after one that warms up."""
    function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds), 1)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
