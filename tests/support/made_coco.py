"""A small data set in COCO's form, whose numbers can be computed by hand."""

SIZES = {"a.png": (80, 100), "b.png": (160, 200), "c.png": (80, 100)}  # height, width
SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]  # the outline of the first cat


def content():
    """Three images; a has two objects, b has one and a crowd, c has the pixels of a and none."""
    box = [
        (1, "cat", [10, 10, 20, 20], 0),
        (1, "dog", [0, 0, 64, 64], 0),
        (2, "cat", [0, 0, 100, 100], 0),
        (2, "dog", [50, 50, 10, 10], 1),
    ]
    ids = {"cat": 3, "dog": 7}
    return {
        "images": [
            {"id": k, "file_name": name, "height": size[0], "width": size[1]}
            for k, (name, size) in enumerate(SIZES.items(), start=1)
        ],
        "categories": [{"id": key, "name": name} for name, key in ids.items()],
        "annotations": [
            {"id": k, "image_id": image, "category_id": ids[name], "bbox": xywh}
            | {"area": xywh[2] * xywh[3], "iscrowd": crowd}
            for k, (image, name, xywh, crowd) in enumerate(box, start=1)
        ],
    }
