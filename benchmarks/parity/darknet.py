"""Parity with darknet: raw heads, decoding, candidates and detections, and photographs.

Cases are those of `parity/yolo` with a cfg; their weights are made up by a rule, or published.
Darknet stretches a photograph to the network's size, bilinearly with aligned corners; its
detections on that are compared.
"""

import hashlib
import pathlib
import types as python_types
from collections.abc import Mapping

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parity import cases, checks, fixture_weights, runner
from detlab import contract, errors, types
from detlab.converters import mapping, target
from detlab.converters.readers import darknet as darknet_reader
from detlab.converters.readers import npz_file
from detlab.converters.tables import darknet as darknet_table
from detlab.darknet import cfg as darknet_cfg
from detlab.detectors import darknet
from detlab.heads import darknet as heads_lib

# Tolerances on photographs.  Darknet decodes their JPEG files by stb_image and OpenCV by libjpeg:
# pixels differ by a few levels where colours change, and detections by this much.
PHOTO_BOXES, PHOTO_SCORES = 1e-3, 0.01  # of the longer side; of 1


def knows(info: Mapping) -> bool:
    """Whether a case is of darknet."""
    weights = info.get("weights")
    if not {"thresh", "nms"} <= info.keys():
        return False
    made = isinstance(weights, Mapping) and "darknet" in weights.get("made_by", "")
    return made or (isinstance(weights, str) and weights.endswith(".weights"))


def lacks(folder: pathlib.Path, name: str, info: Mapping) -> str:
    """What the case needs and detlab lacks, in words; "" if it lacks nothing."""
    if "layers" not in info:
        return ""
    try:
        darknet_cfg.read((folder / name).with_name(info["cfg"]))
    except darknet_cfg.CfgError as error:
        return str(error).removeprefix(f"{(folder / name).parent}/").removesuffix(".")
    return ""


def run(folder: pathlib.Path, name: str, info: dict, settings: runner.Settings) -> runner.Compared:
    """The lines of a case; see `runner.Runner`."""
    folders = settings.folders
    model = _Model(folder, name, info, folders, settings.compiler_options)
    if "images" in info:
        return _photographs(model, info, folders), []
    arrays = npz_file.read(folder / f"{name}.npz").tensors
    found = model(arrays["image"][None])
    lines = []
    for i, (head, raw) in enumerate(zip(info["heads"], found.raw, strict=True)):
        stride, name = head["raw_stride"], f"yolo{head['layer']}"
        # [Hl, Wl, A, 5 + C] -> [A, 5 + C, Hl, Wl]
        mine = raw[0].transpose(2, 3, 0, 1)
        lines.append(
            checks.array_map(
                f"map {name}_raw", mine[..., ::stride, ::stride], arrays[f"{name}_raw"]
            )
        )
        mine = _decoded_as_darknet(mine, model.module.heads()[i])
        lines.append(checks.array_map(f"map {name}_out", mine, arrays[f"{name}_out"]))
    lines += _cells(model.module.heads(), found.raw, arrays, info["thresh"])
    size = np.array(arrays["image"].shape[1::-1] * 2, np.float32)
    for kind in ("candidates", "detections"):
        theirs = _detections(arrays[kind], size)
        mine = _rows(getattr(found, kind))
        # Nothing clips these boxes, and made-up weights make some hundreds of images wide.  So
        # coordinates are compared only up to one image side outside the image.
        mine, theirs = (x._replace(boxes=np.clip(x.boxes, -size, 2 * size)) for x in (mine, theirs))
        for line in checks.detections([mine], [theirs]):
            lines.append(line._replace(quantity=line.quantity.replace("detections", kind, 1)))
    return lines, []


class _Found(python_types.SimpleNamespace):
    """raw: of each head [B, Hl, Wl, A, 5 + C]; candidates, detections: Detections."""


class _Model:
    """images [1, H, W, 3] in 0..255 -> _Found, by one compiled program."""

    def __init__(self, folder, name, info, folders, compiler_options):
        if isinstance(info["weights"], str):
            path = folders.weights / info["weights"]
            network = darknet_cfg.read(path.with_suffix(".cfg"))
            cases.check_sha256(path, info.get("sha256") or info["weights_sha256"])
            tensors = darknet_reader.read(path, network).tensors
        else:
            network = darknet_cfg.read((folder / name).with_name(info["cfg"]))
            tensors = made_up(info)
        self.network = network
        tensors |= darknet_table.counts(network, 0)
        fields = dict(
            cfg=darknet_cfg.format(network),
            num_classes=network.layers[-1].classes,
            score_threshold=info["thresh"],
            nms_iou=info["nms"],
            max_detections=1000,
        )
        self.module = darknet.Darknet(**fields)
        config = python_types.SimpleNamespace(detector="darknet", model=fields)
        shapes = target.shapes(config)
        tree, _ = mapping.convert(tensors, darknet_table.table(network), shapes)
        self._params, self._state = tree.pop("params"), tree
        detector = contract.build(config)

        def compute(params, state, images):
            size = jnp.tile(jnp.array(images.shape[1:3]), (len(images), 1))
            maps, _ = detector.maps(params, state, images, False)
            candidates = detector.candidates(params, state, maps, size, images.shape[1:3])
            return maps.predictions, candidates, detector.suppress(candidates)

        self._compute = jax.jit(compute, compiler_options=compiler_options)

    def __call__(self, images: np.ndarray) -> _Found:
        raw, candidates, found = jax.device_get(self._compute(self._params, self._state, images))
        heads = self.module.heads()
        raw = [
            x.reshape(*x.shape[:3], len(head.mask), -1) for x, head in zip(raw, heads, strict=True)
        ]
        return _Found(raw=raw, candidates=candidates, detections=found)


def made_up(info: dict) -> dict[str, np.ndarray]:
    """Tensors by the rule of the fixtures, with the names of the reader."""
    seed, tensors = info["weights"]["seed"], {}
    digest = hashlib.sha256(np.array([0, 2, 5, 0, 0], "<i4").tobytes())
    names = {"biases": "bias", "scales": "scale", "mean": "mean", "variance": "var"}
    for number, layer in enumerate(info["layers"]):
        if layer["type"] == "shortcut" and "weights" in layer:
            value = fixture_weights.uniform(f"{number}.weights", layer["weights"], seed, 0.25, 1.25)
            inputs = len(np.atleast_1d(layer["from"])) + 1
            per_input = value if len(value) == inputs else value.reshape(inputs, -1)
            tensors[f"{number}.weight"] = per_input
            digest.update(value.astype("<f4").tobytes())
        if layer["type"] != "convolutional" or "share_index" in layer:
            continue
        kinds = ["biases"]
        if layer.get("batch_normalize"):
            kinds += ["scales", "mean", "variance"]
        for kind in kinds:
            value = _vector(f"{number}.{kind}", kind, layer, seed)
            tensors[f"{number}.{names[kind]}"] = value
            digest.update(value.astype("<f4").tobytes())
        shape = (layer["filters"], layer["fan_in"] // layer["size"] ** 2, *(layer["size"],) * 2)
        bound = np.sqrt(3.0 * layer["gain"] / layer["fan_in"])
        count = layer["filters"] * layer["fan_in"]
        value = fixture_weights.uniform(f"{number}.weights", count, seed, -bound, bound)
        if rows := layer.get("head", {}).get("rows"):
            factors = _row_factors(rows, layer)
            value = value.reshape(-1, len(factors), layer["fan_in"]) * factors[:, None]
            value = value.reshape(-1)
        tensors[f"{number}.weight"] = value.reshape(shape)
        digest.update(value.astype("<f4").tobytes())
    if digest.hexdigest() != info["weights_sha256"]:
        raise errors.UserError(
            f"case {info['name']}: the rule makes weights whose SHA-256 is not weights_sha256."
        )
    return tensors


def _vector(key: str, kind: str, layer: dict, seed: int) -> np.ndarray:
    count = layer["filters"]
    if kind == "biases" and layer["before_yolo"]:
        value = fixture_weights.uniform(key, count, seed, -0.5, 0.5)
        entries, head = layer.get("entries", 5), layer.get("head", {})
        value = value.reshape(-1, entries + layer["classes"])
        value[:, entries - 1] += np.float32(head.get("obj", -4))
        value[:, entries:] += np.float32(head.get("cls", -2))
        return value.reshape(-1) - np.array(head.get("center", 0), np.float32)
    damped = 0.12 if layer["before_shortcut"] else 1.0
    low, high = {
        "biases": (-0.1, 0.1),
        "scales": (0.8 * damped, 1.2 * damped),
        "mean": (-0.1, 0.1),
        "variance": (0.5, 1.5),
    }[kind]
    return fixture_weights.uniform(key, count, seed, low, high)


def _row_factors(rows: list, layer: dict) -> np.ndarray:
    """What multiplies the weights of each output of an anchor in the predicting convolution."""
    xy, wh, objectness, classes = rows
    first = [xy, xy, wh, wh, objectness]
    if layer.get("entries", 5) == 9:  # each coordinate has an uncertainty behind it
        first = [xy, objectness, xy, objectness, wh, objectness, wh, objectness, objectness]
    return np.array(first + [classes] * layer["classes"], np.float32)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def _decoded_as_darknet(raw: np.ndarray, head) -> np.ndarray:
    """[A, entries + C, Hl, Wl] -> the entries as the layer outputs them: w, h unchanged."""
    out = raw[:, : head.entries].astype(np.float64)
    logistic = {"yolo": [0, 1, 4], "new_coords": [], "region": [4]}
    logistic["gaussian"] = [0, 1, 2, 3, 5, 7, 8]
    out[:, logistic[head.kind]] = _sigmoid(raw[:, logistic[head.kind]])
    if head.kind != "region":
        place = [0, 2] if head.kind == "gaussian" else [0, 1]
        out[:, place] = head.scale_x_y * out[:, place] - 0.5 * (head.scale_x_y - 1)
    return out


def _cells(heads, maps, arrays, threshold: float) -> list[checks.Line]:
    """Compares which cells hold an object, and the scores of its classes."""
    cells, scores = [], []
    for number, (head, raw) in enumerate(zip(heads, maps, strict=True)):
        raw = raw[0].transpose(2, 0, 1, 3)  # [A, Hl, Wl, 5 + C]
        objectness, classes = (np.asarray(x) for x in heads_lib.probabilities(head, raw))
        for anchor, row, column in np.argwhere(objectness[..., 0] > threshold):
            cells.append((number, anchor, row, column))
            scores.append(classes[anchor, row, column])
    mine, theirs = np.array(cells), arrays["cells"]
    same = mine.shape == theirs.shape
    count = checks.Line("cells count", float(abs(len(mine) - len(theirs))), 0.0)
    if not same:
        return [count]
    return [
        count,
        checks.decision("cells", mine, theirs),
        checks.array_map("cells scores", np.array(scores), arrays["cell_probs"]),
    ]


def _detections(rows: np.ndarray, size: np.ndarray) -> types.Detections:
    """Rows of class, score, objectness, cx, cy, w, h relative to the image -> px, best first."""
    rows = rows[np.argsort(-rows[:, 1], kind="stable")]
    centre, half = rows[:, 3:5], rows[:, 5:7] / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1) * size
    labels = rows[:, 0].astype(int)
    return types.Detections(boxes, rows[:, 1], labels, np.ones(len(rows), bool))


def _rows(found: types.Detections) -> types.Detections:
    """Detections of the first image, without empty rows."""
    return types.Detections(*(values[0][found.valid[0]] for values in found))


def stretched(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Darknet's resize: bilinear with aligned corners, on floats; [h, w, 3] -> [height, width, 3].

    One axis after the other, as darknet does it.
    """

    def along(x, size, axis):
        length = x.shape[axis]
        place = np.arange(size) * np.float32((length - 1) / (size - 1))
        low = np.minimum(place.astype(int), length - 2)
        part = (place - low).reshape([-1 if i == axis else 1 for i in range(3)])
        return (1 - part) * x.take(low, axis) + part * x.take(low + 1, axis)

    return along(along(image.astype(np.float32), width, 1), height, 0).astype(np.float32)


def _photographs(model: _Model, info: dict, folders) -> list[checks.Line]:
    """Detections on each photograph, in px of the photograph."""
    width, height = info["network_size_wh"]
    lines = []
    for name, recorded in info["images"].items():
        path = folders.images / name
        image = cv2.imread(str(path))
        if image is None:
            raise errors.UserError(
                f"{path} cannot be read; --images must name the folder of photographs."
            )
        found = _rows(model(stretched(image[..., ::-1], width, height)[None]).detections)
        size = np.array(recorded["size_wh"] * 2, np.float32)
        unit = np.array([width, height] * 2, np.float32)
        mine = found._replace(boxes=found.boxes / unit * size)
        rows = [[d["class"], d["score"], d["objectness"], *d["xywh"]] for d in recorded["darknet"]]
        theirs = _detections(np.array(rows, np.float64).reshape(-1, 7), size)
        box_px = PHOTO_BOXES * max(recorded["size_wh"])
        for line in checks.detections([mine], [theirs], 0.0, box_px, PHOTO_SCORES):
            lines.append(line._replace(quantity=f"{name} {line.quantity}"))
    return lines


RUNNER = runner.Runner("darknet", knows, run, lacks)
