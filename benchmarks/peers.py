"""The peers of `benchmarks.models`: other implementations of the same networks, if installed.

    python -m benchmarks.peers '{"peer": "torchvision/fcos_resnet50_fpn", "program": "train",
        "canvas": [320, 320], "batch": 2}'

Runs one program of one peer under `benchmarks.turns`; if a package is missing, it exits with a
one-line message.  It imports nothing of detlab, so any Python with the packages can run it.  All
packages are optional.

All weights are random, with the biases of the start of training, so peers detect next to nothing
and have nothing to suppress; detlab's suppression takes the same time for any number of detections.
Training is a whole step: losses, gradients, and SGD with momentum.  As in the configs that detlab
follows, ResNets freeze their stem and first stage and use running statistics.
"""

import importlib
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import turns

NUM_CLASSES, OBJECTS = 80, 8


class Task(NamedTuple):
    """The program that a peer runs."""

    peer: str  # package/model
    program: str  # predict or train
    canvas: Sequence[int]  # height, width px
    batch: int
    files: str = ""  # folder with net.cfg and net.weights, for OpenCV
    form: str = ""  # of `FORMS`, for torchvision's RetinaNet and FCOS on a GPU


# How PyTorch is made fast on a GPU, one step more each time.  Compiled are the backbone with its
# pyramid and the head, where nearly all operations are; matching, losses and suppression have
# shapes that depend on the data, and run as they do without.
FORMS = {
    "": "float32",
    "half": "autocast to bfloat16, channels_last",
    "compiled": "autocast to bfloat16, channels_last, torch.compile",
}


class Peer(NamedTuple):
    """A package with models to measure."""

    make: Callable  # (Task, name of the model) -> (run, figures, last figures)
    install: str  # what to install
    programs: tuple[str, ...] = ("predict", "train")


def main(arguments: Sequence[str]) -> None:
    task = Task(**json.loads(arguments[0]))
    package, _, name = task.peer.partition("/")
    turns.serve(*PEERS[package].make(task, name))


def load(name: str) -> Any:
    """Imports a package; if it is missing, the program exits with a one-line message."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        sys.exit(f"{name} cannot be imported: {error}")


def images_and_boxes(task: Task):
    """uint8 [B, H, W, 3], and for each image float32 [8, 4] xyxy px and int64 [8] labels."""
    rng = np.random.default_rng(0)
    height, width = task.canvas
    images = rng.integers(0, 256, (task.batch, height, width, 3), np.uint8)
    corner = rng.uniform(0, 0.6, (task.batch, OBJECTS, 2)) * (width, height)
    size = rng.uniform(0.1, 0.4, (task.batch, OBJECTS, 2)) * (width, height)
    boxes = np.concatenate([corner, corner + size], -1).astype(np.float32)
    return images, boxes, rng.integers(0, NUM_CLASSES, (task.batch, OBJECTS))


# ------------------------------------------------------------------------------------------------
# torchvision: RetinaNet, FCOS, Faster R-CNN and SSD300


def torchvision(task: Task, name: str):
    torch, vision = load("torch"), load("torchvision")
    device = _device(torch)
    height, width = task.canvas
    sizes = dict(min_size=min(height, width), max_size=max(height, width))
    if name.startswith("fasterrcnn"):
        sizes["rpn_post_nms_top_n_train"] = 1000
    if name.startswith("ssd300"):
        sizes = {}
        if (height, width) != (300, 300):
            sys.exit(f"{name} takes 300x300 px only, not {height}x{width}")
    first = 1 if name.startswith(("fasterrcnn", "ssd")) else 0  # class 0 is the background
    classes = NUM_CLASSES + first
    build = getattr(vision.models.detection, name)
    model = build(weights=None, weights_backbone=None, num_classes=classes, **sizes).to(device)
    if task.form:
        model = model.to(memory_format=torch.channels_last)
        torch.backends.cudnn.benchmark = True
    if task.form == "compiled":
        for part in (model.backbone, model.head):
            part.compile()

    def call(*inputs):
        with torch.autocast(device, torch.bfloat16, enabled=bool(task.form)):
            return model(*inputs)

    pictures, boxes, labels = images_and_boxes(task)
    images = [_nchw(torch, picture[None])[0].to(device) for picture in pictures]
    targets = [
        {"boxes": torch.from_numpy(b).to(device), "labels": torch.from_numpy(c + first).to(device)}
        for b, c in zip(boxes, labels, strict=True)
    ]
    versions = {"version": f"torchvision {vision.__version__}, PyTorch {torch.__version__}"}
    if task.program == "predict":
        return _predict(torch, model, lambda: call(images), versions)
    model.train()
    if hasattr(model.backbone, "body"):  # a ResNet; the VGG16 of SSD trains as a whole
        body = model.backbone.body
        for part in (body.conv1, body.bn1, body.layer1):
            part.requires_grad_(False)
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return _train(torch, model, lambda: sum(call(images, targets).values()), versions)


# ------------------------------------------------------------------------------------------------
# The package yolov5


def yolov5(task: Task, name: str):
    torch, package = load("torch"), load("yolov5")
    yolo, general = load("yolov5.models.yolo"), load("yolov5.utils.general")
    device = _device(torch)
    cfg = pathlib.Path(package.__file__).parent / "models" / f"{name}.yaml"
    model = yolo.Model(str(cfg), ch=3, nc=NUM_CLASSES).to(device)
    pictures, boxes, labels = images_and_boxes(task)
    images = _nchw(torch, pictures).to(device)
    versions = {"version": f"yolov5 {package.__version__}, PyTorch {torch.__version__}"}
    if task.program == "predict":
        model.fuse()  # merges norms into convolutions, as the package does for prediction
        return _predict(
            torch,
            model,
            lambda: general.non_max_suppression(model(images)[0], 0.001, 0.6, multi_label=True),
            versions,
        )
    gains = dict(box=0.05, cls=0.5, obj=1.0, cls_pw=1.0, obj_pw=1.0, fl_gamma=0.0, anchor_t=4.0)
    model.hyp = gains
    loss = load("yolov5.utils.loss").ComputeLoss(model)
    size = np.tile(np.float32(task.canvas[::-1]), 2)
    rows = [  # image, class, centre and size relative to the image
        (i, c, *(b[:2] + b[2:]) / 2, *(b[2:] - b[:2]))
        for i in range(task.batch)
        for b, c in zip(boxes[i] / size, labels[i], strict=True)
    ]
    targets = torch.tensor(np.array(rows, np.float32), device=device)
    model.train()
    return _train(torch, model, lambda: loss(model(images), targets)[0].sum(), versions)


# ------------------------------------------------------------------------------------------------
# OpenCV: networks of darknet, on the CPU


def opencv(task: Task, name: str):
    del name  # the files describe its network
    cv2 = load("cv2")
    if not hasattr(cv2.dnn, "readNetFromDarknet"):
        sys.exit(f"OpenCV {cv2.__version__} cannot read darknet networks")
    files = pathlib.Path(task.files)
    net = cv2.dnn.readNetFromDarknet(str(files / "net.cfg"), str(files / "net.weights"))
    model = cv2.dnn.DetectionModel(net)
    height, width = task.canvas
    model.setInputParams(scale=1 / 255, size=(width, height))
    pictures, _, _ = images_and_boxes(task)

    def run():
        for picture in pictures:
            model.detect(picture, confThreshold=0.25, nmsThreshold=0.45)

    return run, {"version": f"OpenCV {cv2.__version__}"}


PEERS = {
    "torchvision": Peer(torchvision, "torch torchvision"),
    "yolov5": Peer(yolov5, "torch yolov5"),
    "opencv": Peer(opencv, '"opencv-python-headless<5"', ("predict",)),
}


# ------------------------------------------------------------------------------------------------
# Helpers of the peers on PyTorch


def _device(torch) -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _nchw(torch, pictures: np.ndarray):
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in 0..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().contiguous() / 255


def _predict(torch, model, predict: Callable, versions: dict):
    model.eval()

    def run():
        with torch.inference_mode():
            predict()
        _wait(torch)

    return run, {**versions, **_size(model)}, lambda: _memory(torch)


def _train(torch, model, loss: Callable, versions: dict):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-5, momentum=0.9, weight_decay=1e-4)

    def run():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        _wait(torch)

    return run, {**versions, **_size(model)}, lambda: _memory(torch)


def _wait(torch) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _size(model) -> dict:
    return {"parameters_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 3)}


def _memory(torch) -> dict:
    if not torch.cuda.is_available():
        return {}
    return {"device_peak_mib": torch.cuda.max_memory_allocated() / 2**20}


if __name__ == "__main__":
    main(sys.argv[1:])
