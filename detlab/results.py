"""What a predictor finds in an image, in pixels of that image."""

import difflib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from detlab import errors, files
from detlab.data import coco_classes
from detlab.viz import boxes as draw_lib


class Result:
    """The n objects of one image, best first.

        for box, score, name in zip(result.boxes, result.scores, result.names):
            ...
        people = result.where(class_="person", score=0.5)
        result[:10].draw("ten.png")

    Attributes:
      boxes: [n, 4] float32 xyxy, px of the image.
      scores: [n] float32.
      labels: [n] int32, numbers of the classes.
      names: n class names.
      class_names: the C names of all classes, by label.
      size: (height, width) px of the image.
      path: file of the image; None if it was an array.
    """

    def __init__(
        self,
        boxes: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        size: tuple[int, int],
        image: Callable[[], np.ndarray],
        path: pathlib.Path | None = None,
    ):
        """`image` reads or returns the picture, uint8 RGB, when it is needed."""
        self.boxes, self.scores, self.labels = boxes, scores, labels
        self.class_names, self.size, self.path = tuple(class_names), size, path
        self._image = image

    @property
    def names(self) -> list[str]:
        return [self.class_names[label] for label in self.labels]

    @property
    def image(self) -> np.ndarray:
        """[h, w, 3] uint8 RGB; a file is read again."""
        return self._image()

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int | slice | np.ndarray) -> "Result":
        """The objects of a slice, of a mask [n] or of positions; a number gives that one object."""
        if isinstance(index, int | np.integer):
            index = [range(len(self))[index]]  # raises IndexError, so a loop ends
        elif not isinstance(index, slice):
            index = np.asarray(index)
            if index.dtype == bool and index.shape != (len(self),):
                raise IndexError(f"the mask has shape {index.shape}; there are {len(self)} objects")
            index = index if index.size else index.astype(int)
        arrays = self.boxes[index], self.scores[index], self.labels[index]
        return Result(*arrays, self.class_names, self.size, self._image, self.path)

    def where(
        self, class_: str | int | Iterable[str | int] | None = None, score: float | None = None
    ) -> "Result":
        """The objects of some classes, with at least some score.

        Args:
          class_: a name or label, or several; None: all.
          score: least score; None: any.
        Raises:
          UserError: no such class.
        """
        keep = np.ones(len(self), bool)
        if class_ is not None:
            several = [class_] if isinstance(class_, str | int | np.integer) else list(class_)
            keep &= np.isin(self.labels, [self._label(one) for one in several])
        if score is not None:
            keep &= self.scores >= score
        return self[keep]

    def _label(self, class_: str | int) -> int:
        if not isinstance(class_, str):
            if 0 <= class_ < len(self.class_names):
                return int(class_)
            raise errors.UserError(
                f"class {class_} does not exist; the labels are 0 to {len(self.class_names) - 1}."
            )
        if class_ in self.class_names:
            return self.class_names.index(class_)
        close = difflib.get_close_matches(class_, self.class_names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "`class_names` lists all."
        raise errors.UserError(f"class {class_!r} does not exist; {hint}")

    def draw(self, path: str | pathlib.Path | None = None, min_side: int = 480) -> np.ndarray:
        """The image with boxes, names and scores, uint8 RGB; written to a file too if it is named.

        Args:
          path: a .png or .jpg to write.
          min_side: see `viz.boxes.draw`.
        Raises:
          UserError: the file cannot be written.
        """
        drawn = draw_lib.draw(
            self.image, self.boxes, self.labels, self.class_names, self.scores, min_side=min_side
        )
        if path is not None:
            files.save_picture(pathlib.Path(path), drawn)
        return drawn

    def to_coco(
        self, image_id: int | str, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Entries of a results file of COCO's tools: boxes as x, y, width, height.

        Args:
          image_id: that of the annotation file.
          category_ids: C ids by label.  Default: COCO's own for COCO's 80 classes, else from 1.
        """
        if category_ids is None:
            ends = self.class_names[0], self.class_names[-1], len(self.class_names)
            of_coco = ends == (coco_classes.NAMES[0], coco_classes.NAMES[-1], len(coco_classes.IDS))
            category_ids = coco_classes.IDS if of_coco else range(1, len(self.class_names) + 1)
        x1, y1, x2, y2 = self.boxes.astype(float).T
        xywh = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1).tolist()
        return [
            {
                "image_id": image_id,
                "category_id": int(category_ids[label]),
                "bbox": box,
                "score": score,
            }
            for box, score, label in zip(xywh, self.scores.tolist(), self.labels, strict=True)
        ]

    def to_supervision(self) -> Any:
        """`supervision.Detections`, with `data["class_name"]`.

        Raises:
          UserError: the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise errors.UserError(
                "to_supervision() needs the package supervision; run `pip install supervision`."
            ) from error
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels.astype(int),
            data={"class_name": np.array(self.names, str)},
        )

    def __repr__(self) -> str:
        first = [f"{name} {x:.2f}" for name, x in zip(self.names[:5], self.scores, strict=False)]
        more = ["..."] if len(self) > 5 else []
        where = f" in {self.path.name}" if self.path else ""
        height, width = self.size
        found = f": {', '.join(first + more)}" if first else ""
        return f"<{len(self)} objects{where} ({width}x{height} px){found}>"

    def _repr_png_(self) -> bytes:
        """The picture that a notebook shows."""
        return draw_lib.encode(self.draw(), ".png")
