"""A detector that finds objects in images: what `detlab.load` returns."""

import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import config_dict
from PIL import Image, ImageOps

from detlab import contract, errors, results
from detlab import detect as detect_lib
from detlab.data import records

_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV")


class Predictor:
    """Detects the same objects as `detlab demo`.

        result = predictor("photo.jpg")
        results = predictor(["a.jpg", "b.jpg"], threshold=0.5)

    A program is compiled once for each canvas.  Calls from several threads are safe, and predictors
    share nothing.

    Attributes:
      detector: the pure functions, see `contract.Detector`.
      params, state: their first two arguments.
      config: the resolved config; its `model` has the fields of `predict.model`.
      class_names: C names, by label.
    """

    def __init__(
        self,
        config: config_dict.ConfigDict,
        params: Any,
        state: Any,
        class_names: tuple[str, ...],
        batch_size: int = 1,
    ):
        """Takes trees on devices, and the config that `detect.for_pictures` returns.

        With a batch size above 1, images of a list that have the same canvas share a call of the
        program, and the last batch is padded.
        """
        if batch_size < 1:
            raise errors.UserError(f"batch_size is {batch_size}; it must be at least 1.")
        self.config, self.params, self.state = config, params, state
        self.class_names = class_names
        self.detector = contract.build(config)
        self._batch_size = batch_size
        self._jitted = jax.jit(self.detector.predict)
        self._compiled, self._lock = {}, threading.Lock()
        self._detect = detect_lib.of(self._predict, params, state, config, class_names)

    def __call__(
        self,
        images: Any,
        threshold: float | None = None,
        top_k: int | None = None,
        bgr: bool = False,
    ) -> results.Result | list[results.Result]:
        """The objects of an image, or of each image of several.

        Args:
          images: an image, or a list or other iterable of them, or uint8 arrays stacked to [n, h,
            w, 3].  An image is the path of a file, a PIL image, or a uint8 array [h, w, 3] whose
            channels are R, G, B ([h, w]: grey).
          threshold: least score; default: config.predict.threshold.
          top_k: most objects of an image; default: config.predict.top_k.
          bgr: the channels of arrays are B, G, R, as OpenCV reads them.
        Returns:
          a `Result`, or a list of them.
        Raises:
          UserError: an image that cannot be read or has another form.
        """
        detect = self._detect
        if threshold is not None:
            if not 0 <= threshold <= 1:
                raise errors.UserError(f"threshold is {threshold:g}; it must be from 0 to 1.")
            detect = detect._replace(threshold=threshold)
        if top_k is not None:
            if top_k < 1:
                raise errors.UserError(f"top_k is {top_k}; it must be at least 1.")
            detect = detect._replace(top_k=top_k)
        exif = self.config.data.exif
        if _is_one(images):
            return next(self._results(detect, [_picture(images, exif, bgr)], 1))
        pictures = (_picture(image, exif, bgr) for image in images)
        return list(self._results(detect, pictures, self._batch_size))

    def _results(
        self, detect: detect_lib.Detect, pictures: Iterable["_Picture"], batch_size: int
    ) -> Iterator[results.Result]:
        """The results in the order of the pictures, of which few are held at a time."""
        waiting: dict[tuple, list] = {}  # canvas -> (position, picture, image)
        found: dict[int, results.Result] = {}

        def run(canvas):
            rows = waiting.pop(canvas)
            of_rows = detect.together([image for _, _, image in rows], batch_size)
            for (i, picture, image), objects in zip(rows, of_rows, strict=True):
                found[i] = results.Result(
                    **objects,
                    class_names=self.class_names,
                    size=image.shape[:2],
                    image=picture.read,
                    path=picture.path,
                )

        count = 0
        for i, picture in enumerate(pictures):
            image = picture.read()
            canvas = detect.canvas(image)
            waiting.setdefault(canvas, []).append((i, picture, image))
            if len(waiting[canvas]) == batch_size:
                run(canvas)
            count += 1
        for canvas in list(waiting):
            run(canvas)
        for i in range(count):
            yield found[i]

    def _predict(self, params: Any, state: Any, images: np.ndarray, image_size: np.ndarray):
        with self._lock:
            if images.shape not in self._compiled:
                lowered = self._jitted.lower(params, state, images, image_size)
                self._compiled[images.shape] = lowered.compile()
        return self._compiled[images.shape](params, state, images, image_size)


class _Picture(NamedTuple):
    """An image that may have to be read first."""

    read: Callable[[], np.ndarray]
    path: pathlib.Path | None = None


def _is_one(images: Any) -> bool:
    """Whether this is one image rather than several."""
    if isinstance(images, str | os.PathLike | Image.Image):
        return True
    return hasattr(images, "shape") and len(images.shape) != 4


def _picture(image: Any, exif: str, bgr: bool) -> _Picture:
    """Checks the form of an image; a file is read later.

    Raises:
      UserError: it is no image.
    """
    if isinstance(image, str | os.PathLike):
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", str(image)):
            raise errors.UserError(f"{image} is a URL; download the image and give its path.")
        path = pathlib.Path(image).expanduser()
        if path.is_dir():
            raise errors.UserError(f"{path} is a folder; give a list of its images.")
        return _Picture(lambda: _read(path, exif), path)
    array = _of_pil(image, exif) if isinstance(image, Image.Image) else _of_array(image, bgr)
    return _Picture(lambda: array)


def _read(path: pathlib.Path, exif: str) -> np.ndarray:
    try:
        return records.read_image(path, exif)
    except records.DataError as error:
        raise errors.UserError(f"{error}.") from error


def _of_pil(image: Image.Image, exif: str) -> np.ndarray:
    if image.mode not in _EIGHT_BITS:
        raise errors.UserError(
            f"the PIL image has mode {image.mode}; convert it to 8 bits a channel, mode RGB."
        )
    upright = image if exif == "stored" else ImageOps.exif_transpose(image)
    return np.asarray(upright.convert("RGB"))


def _of_array(image: Any, bgr: bool) -> np.ndarray:
    if not hasattr(image, "shape") or not hasattr(image, "dtype"):
        raise errors.UserError(
            f"an image is a {type(image).__name__}; give a path, a PIL image or a uint8 array"
            " [h, w, 3]."
        )
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise errors.UserError(
            f"an image has type {array.dtype}; it must be uint8, from 0 to 255 (multiply values"
            " from 0 to 1 by 255)."
        )
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        remedy = "move the channels last" if first else "drop or repeat channels"
        raise errors.UserError(
            f"an image has shape {array.shape}; it must be [h, w, 3], so {remedy}."
        )
    return array[..., ::-1] if bgr else array
