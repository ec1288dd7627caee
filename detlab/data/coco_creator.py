"""Writes a data set in COCO's form: one class for any source of boxes, polygons or masks.

    creator = CocoCreator(("cat", "dog"))
    image = creator.add_image("0001.jpg", height=480, width=640)
    creator.add_box(image, "cat", (10, 20, 110, 220))
    creator.add_polygons(image, "dog", [[200, 100, 300, 100, 250, 180]])
    creator.add_mask(image, "dog", mask, crowd=True)
    creator.save("annotations/instances_train.json")

Categories have the ids 1, 2, ... in the order of the classes; images and objects are numbered from
1.  Outlines are measured by pycocotools, and masks are stored as its run lengths, without loss.
"""

import collections
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np


class CocoCreator:
    """Collects images and objects and writes them as COCO's `instances` file.

    Args:
      class_names: in label order.
      supercategories: of the classes, as many as these; by default their own names.
      info: what the file says of itself, such as {"description": "my cats"}.
    Raises:
      ValueError: no class, a class twice, or another number of supercategories.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        supercategories: Sequence[str] | None = None,
        info: dict[str, Any] | None = None,
    ):
        names = list(class_names)
        above = names if supercategories is None else list(supercategories)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"class_names are {names}; give at least one, each once")
        if len(above) != len(names):
            raise ValueError(f"{len(above)} supercategories for {len(names)} classes; give as many")
        self.dropped = collections.Counter()  # reason -> number of objects that were not added
        self._category_id = {name: k for k, name in enumerate(names, start=1)}
        self._content = {
            "info": dict(info or {}),
            "images": [],
            "annotations": [],
            "categories": [
                {"id": k, "name": name, "supercategory": of}
                for k, (name, of) in enumerate(zip(names, above, strict=True), start=1)
            ],
        }
        self._files = set()

    @property
    def content(self) -> dict[str, Any]:
        """The content of the file."""
        return self._content

    def add_image(self, file_name: str, height: int, width: int, **more: Any) -> int:
        """Adds an image, also one without objects; `more` are further keys of its entry.

        Returns:
          Its id.
        Raises:
          ValueError: the name is taken, or a side is under 1 px.
        """
        if file_name in self._files:
            raise ValueError(f"image {file_name!r} is added twice")
        if min(height, width) < 1:
            raise ValueError(f"image {file_name!r} has {height}x{width} px; sides are at least 1")
        self._files.add(file_name)
        number = len(self._content["images"]) + 1
        entry = {"id": number, "file_name": file_name, "height": int(height), "width": int(width)}
        self._content["images"].append(entry | more)
        return number

    def add_box(
        self,
        image_id: int,
        class_name: str,
        box,
        crowd: bool = False,
        area: float | None = None,
        **more: Any,
    ) -> int | None:
        """Adds an object that has a box only.

        Args:
          image_id: as `add_image` returned it.
          class_name: one of the classes.
          box: [4] x1, y1, x2, y2 px, from 0.
          crowd: whether the object is neither to be found nor to be counted as an error.
          area: px^2; by default that of the box.
          more: further keys of the entry, such as `difficult`.
        Returns:
          The id of the object; None if its area is not positive, which `dropped` counts.
        Raises:
          ValueError: an unknown image or class, or a box that is not 4 finite numbers.
        """
        corners = np.asarray(box, np.float64)
        if corners.shape != (4,) or not np.isfinite(corners).all():
            raise ValueError(f"box is {box}; it must be 4 finite numbers, x1, y1, x2, y2")
        sides = corners[2:] - corners[:2]
        if (sides <= 0).any():
            self._check(image_id, class_name)
            self.dropped["without area"] += 1
            return None
        xywh = [round(x, 4) for x in (*corners[:2].tolist(), *sides.tolist())]
        area = float(sides.prod()) if area is None else float(area)
        return self._add(image_id, class_name, xywh, area, crowd, more)

    def add_polygons(
        self, image_id: int, class_name: str, polygons: Sequence[Sequence[float]], **more: Any
    ) -> int | None:
        """Adds an object with an outline of one or several polygons; box and area are theirs.

        Args:
          polygons: each x, y, x, y, ... px, of at least 3 points.
          more: see `add_box`.
        Returns:
          The id of the object; None if it covers less than a px, which `dropped` counts.
        Raises:
          ValueError: an unknown image or class, or too few numbers in a polygon.
        """
        from pycocotools import mask as coco_mask  # imported late: programs start without it

        polygons = [[float(x) for x in polygon] for polygon in polygons]
        if not polygons or any(len(p) < 6 or len(p) % 2 for p in polygons):
            raise ValueError("a polygon needs x and y of at least 3 points")
        entry = self._check(image_id, class_name)
        code = coco_mask.merge(coco_mask.frPyObjects(polygons, entry["height"], entry["width"]))
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
        low, high = points.min(axis=0), points.max(axis=0)
        xywh = [round(x, 4) for x in (*low.tolist(), *(high - low).tolist())]
        return self._add_outline(image_id, class_name, polygons, code, xywh, False, more)

    def add_mask(
        self, image_id: int, class_name: str, mask, crowd: bool = False, **more: Any
    ) -> int | None:
        """Adds an object with a mask; box and area are the mask's.

        Args:
          mask: [H, W] bool, of the image's size.
          crowd, more: see `add_box`.
        Returns:
          The id of the object; None if the mask is empty, which `dropped` counts.
        Raises:
          ValueError: an unknown image or class, or a mask of another size.
        """
        from pycocotools import mask as coco_mask

        entry = self._check(image_id, class_name)
        mask = np.asarray(mask, bool)
        if mask.shape != (entry["height"], entry["width"]):
            raise ValueError(
                f"mask has the shape {mask.shape}; that of image {image_id} is"
                f" {(entry['height'], entry['width'])}"
            )
        code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        outline = {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}
        xywh = coco_mask.toBbox(code).tolist()
        return self._add_outline(image_id, class_name, outline, code, xywh, crowd, more)

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the file; creates its folder.

        Raises:
          OSError: it cannot be written.
        """
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._content), encoding="utf-8")

    def _add_outline(self, image_id, class_name, outline, code, xywh, crowd, more):
        from pycocotools import mask as coco_mask

        area = float(coco_mask.area(code))
        if area < 1:
            self.dropped["covering less than a px"] += 1
            return None
        return self._add(image_id, class_name, xywh, area, crowd, {"segmentation": outline} | more)

    def _add(self, image_id, class_name, xywh, area, crowd, more):
        self._check(image_id, class_name)
        number = len(self._content["annotations"]) + 1
        entry = {
            "id": number,
            "image_id": image_id,
            "category_id": self._category_id[class_name],
            "bbox": xywh,
            "area": round(area, 4),
            "iscrowd": int(crowd),
        }
        self._content["annotations"].append(entry | more)
        return number

    def _check(self, image_id, class_name):
        """The entry of the image."""
        if class_name not in self._category_id:
            known = ", ".join(self._category_id)
            raise ValueError(f"class {class_name!r} is not among the classes, {known}")
        if not 1 <= image_id <= len(self._content["images"]):
            raise ValueError(f"image {image_id!r} was not added; give the id of add_image")
        return self._content["images"][image_id - 1]
