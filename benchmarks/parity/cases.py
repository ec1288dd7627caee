"""Reads the recorded cases of reference detectors: `NAME.json` and `NAME.npz`.

The README beside the fixtures describes the formats.  Cases are in the folder itself and in its
subfolders; those are called `folder/NAME`.  Other JSON files there, such as recorded figures, are
not cases.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks import command
from detlab import errors, types
from detlab.converters.readers import npz_file

# Keys of a case with generated weights; one with published weights has fewer.
_KEYS = (
    *("name", "source", "model_cfg", "train_cfg", "test_cfg", "num_classes"),
    *("seed", "state_dict", "kept", "kept_values", "weights_sha256"),
    *("input_shape", "gt_counts", "sampled", "losses", "total_loss"),
    *("grad_norms", "grad_dots", "frozen", "unused", "buffers_after_train"),
)
_PARTS = (
    *("drift.losses", "drift.detections", "batch_norm_in_train.batch_statistics"),
    *("grad_drift.norms", "grad_drift.dots", "grad_drift.vectors"),
)


class Folders(NamedTuple):
    """Folders of the files that cases with published weights were recorded with."""

    weights: pathlib.Path
    images: pathlib.Path
    data: pathlib.Path


class Case(NamedTuple):
    """One recorded run of a reference detector."""

    name: str
    info: dict  # the JSON
    arrays: dict[str, np.ndarray]  # the NPZ, read-only; maps are NCHW, boxes xyxy px of the input

    @property
    def bgr(self) -> bool:
        """Whether the network reads blue first."""
        return not part(self.info, "model_cfg.data_preprocessor.bgr_to_rgb")

    def batch(self) -> types.Batch:
        """The recorded images and objects in RGB, with one empty slot more than any image needs."""
        images = self.arrays["image"].transpose(0, 2, 3, 1)
        if self.bgr:
            images = images[..., ::-1]
        counts = self.info["gt_counts"]
        b, h, w, _ = images.shape
        g = max(counts) + 1
        boxes, labels = np.zeros((b, g, 4), np.float32), np.zeros((b, g), np.int32)
        for i, count in enumerate(counts):
            if count:
                boxes[i, :count] = self.arrays[f"gt_boxes_{i}"]
                labels[i, :count] = self.arrays[f"gt_labels_{i}"]
        return types.Batch(
            images=np.ascontiguousarray(images),
            boxes=boxes,
            labels=labels,
            valid=np.arange(g) < np.array(counts)[:, None],
            ignore=np.zeros((b, g), bool),
            image_size=np.tile(np.int32([h, w]), (b, 1)),
            placement=np.tile(np.float32([1, 1, 0, 0]), (b, 1)),
            index=np.arange(b, dtype=np.int32),
            real=np.ones(b, bool),
        )

    def as_stored(self, name: str, whole: np.ndarray) -> np.ndarray:
        """A whole array as the file stores it; of some arrays that is every nth value.

        Raises:
          ValueError: its shape differs from that of the recorded array.
        """
        entry = self.info["sampled"].get(name)
        shape = tuple(entry["shape"]) if entry else self.arrays[name].shape
        if whole.shape != shape:
            raise ValueError(f"shape {whole.shape}, not {shape}")
        return whole.reshape(-1)[:: entry["step"]] if entry else whole


def folders(args) -> Folders:
    """The given folders, which must exist; by default those beside the folder `parity`."""
    fixtures = args.fixtures.resolve()
    above = (folder for folder in (fixtures, *fixtures.parents) if folder.name == "parity")
    beside = pathlib.Path(os.path.relpath(next(above, fixtures).parent))
    found = {}
    for name in Folders._fields:
        given = getattr(args, name)
        if given is not None and not given.is_dir():
            raise errors.UserError(f"--{name} {given} is not a folder.")
        found[name] = given or beside / name
    return Folders(**found)


def find(folder: pathlib.Path) -> dict[str, dict]:
    """Name -> JSON of every case.

    Raises:
      UserError: there is no folder or no case in it, a file is not JSON, or a case lacks keys.
    """
    if not folder.is_dir():
        raise errors.UserError(
            f"{folder} is not a folder; --fixtures must name one with cases in it."
        )
    found = {}
    for path in (*sorted(folder.glob("*.json")), *sorted(folder.glob("*/*.json"))):
        try:
            info = json.loads(path.read_text())
        except OSError as error:
            raise errors.UserError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise errors.UserError(f"{path} is not JSON: {error}.") from error
        # Every case has one of these keys, with published or generated weights.
        if isinstance(info, dict) and {"model_cfg", "weights"} & info.keys():
            if "model_cfg" in info:
                absent = [key for key in _KEYS if key not in info]
                absent += [key for key in _PARTS if part(info, key) is None]
                absent += [] if absent else _without_drift(info)
                if absent:
                    raise errors.UserError(
                        f"{path} is not a complete case: it lacks {', '.join(absent)}."
                    )
            found[path.relative_to(folder).with_suffix("").as_posix()] = info
    if not found:
        raise errors.UserError(
            f"{folder} has no case: no NAME.json in it has model_cfg or weights."
        )
    return found


def _without_drift(info: dict) -> list[str]:
    """The first three drifts that a case lacks although it has the gradients."""
    return [
        f"grad_drift.{of} of {key}"
        for of in ("norms", "dots", "vectors")
        for key in info["grad_norms"]
        if key not in info["grad_drift"][of]
    ][:3]


def choose(found: Mapping[str, dict], wanted: list[str]) -> dict[str, dict]:
    """The named cases, or all if none is named.

    Raises:
      UserError: there is no case of that name.
    """
    return {name: found[name] for name in command.choose(wanted, found, "case", "--case")}


def read(folder: pathlib.Path, name: str, info: dict) -> Case:
    """The case with its arrays.

    Raises:
      UserError: its NPZ is missing, cannot be read, or lacks images, objects or detections.
    """
    path = folder / f"{name}.npz"
    arrays = npz_file.read(path).tensors
    needed = ["image"]
    for i, count in enumerate(info["gt_counts"]):
        needed += [f"det_{x}_{i}" for x in ("boxes", "scores", "labels")]
        needed += [f"gt_{x}_{i}" for x in ("boxes", "labels") if count]
    absent = [array for array in needed if array not in arrays]
    if absent:
        raise errors.UserError(
            f"{path} is not a complete case: it lacks arrays {', '.join(absent)}."
        )
    return Case(name, info, arrays)


def title(info: Mapping) -> str:
    """One line on what a case was recorded from."""
    if "model_cfg" in info:
        return f"{info['source']}, seed {info['seed']}, input {info['input_shape']}"
    return info.get("reference") or info["weights"]


def check_sha256(path: pathlib.Path, wanted: str | None) -> None:
    """Checks that published weights are those of the case, if it records which.

    Raises:
      UserError: they cannot be read, or are not those of the case.
    """
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise errors.UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if wanted not in (None, found):
        raise errors.UserError(f"{path} has SHA-256 {found}; the case was recorded with {wanted}.")


def part(info: Mapping, path: str) -> Any:
    """The value at a path such as "model_cfg.neck.type" or "a.0.b"; None if there is none."""
    value = info
    for key in path.split("."):
        if isinstance(value, list):
            value = dict(enumerate(value)).get(int(key)) if key.isdigit() else None
        else:
            value = value.get(key) if isinstance(value, Mapping) else None
    return value
