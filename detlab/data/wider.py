"""WIDER FACE annotations in the data set's own text files (arXiv:1511.06523).

For each image of `WIDER_<split>/images`, `wider_face_split/wider_face_<split>_bbx_gt.txt` lists its
name, its number of faces and one line per face: `x y w h blur expression illumination invalid
occlusion pose`, px counted from 0.  An image without faces has the number 0, followed by a line of
zeros in the original files.

All six flags are kept as `flags` of a record (`FLAGS` names the columns).  Faces marked `invalid`,
which cannot be judged, become `ignore`.
"""

import pathlib
import re

import numpy as np

from detlab.data import names as names_lib
from detlab.data import records as records_lib

CLASS_NAMES = ("face",)

# Columns of `flags`: blur 0 clear, 1 normal, 2 heavy; expression 0 typical, 1 exaggerated;
# illumination 0 normal, 1 extreme; invalid 0, 1; occlusion 0 none, 1 partial, 2 heavy;
# pose 0 typical, 1 atypical.
FLAGS = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")
_LARGEST = (2, 1, 1, 1, 2, 1)


class Wider(records_lib.FileSource):
    """The images of one or several splits, one after another.

    The id of an image is its name without suffix, `0--Parade/0_Parade_marchingband_1_849`, the name
    that the data set's evaluation expects.  If there are several splits, it is
    `train/0--Parade/...`.

    Faces without width or height are dropped, `strict` or not, and reported in one sentence.  The
    published files contain a few, which no detection can match; raising would reject the data set.
    Opening the source reads the header of every image, because the text files have no sizes.

    Args:
      root: the folder of `WIDER_train`, `WIDER_val` and `wider_face_split`.
      splits: "train", "val" or both.
      strict: raise at the first unusable image or face; False skips it and reports it in
        `problems`.
      exif: see `records.decode_image`; no size in the text files shows how an image was annotated.
    Raises:
      DataError: a folder or split is missing, or a line of its file is malformed (`strict` or not:
        the lines after it cannot be trusted); with `strict`, also if an image is missing, has no
        size or is listed twice, or if a face has a negative side or lies outside its image.
    """

    class_names = CLASS_NAMES

    def __init__(self, root, splits=("train",), strict=True, exif="auto"):
        root = pathlib.Path(root)
        splits = (splits,) if isinstance(splits, str) else tuple(splits)
        bad_images = records_lib.Faults(strict)
        paths, image_ids, sizes, entries = [], [], [], {}
        image, faces, places = [], [], []
        notes = []
        for split, file in _files(root, splits):
            images = names_lib.Files(root / f"WIDER_{split}" / "images")
            listed = _read(file, images)
            found = images.paths([name for _, name, _ in listed])
            notes += images.problems(file)
            for (number, name, rows), path in zip(listed, found, strict=True):
                try:
                    if path in entries:
                        raise records_lib.DataError(
                            f"annotation file {file}, line {number} lists image {name!r} again "
                            f"after line {entries[path]}"
                        )
                    size = records_lib.read_image_size(path, exif)
                except records_lib.DataError as error:
                    bad_images.add(str(error))
                    continue
                entries[path] = number
                for line, row in rows:
                    image.append(len(paths))
                    faces.append(row)
                    places.append((file, line))
                if name in images.respelled:
                    name = names_lib.normal(str(pathlib.Path(path).relative_to(images.folder)))
                stem = str(pathlib.PurePosixPath(name).with_suffix(""))
                image_ids.append(f"{split}/{stem}" if len(splits) > 1 else stem)
                paths.append(path)
                sizes.append(size)

        image = np.array(image, np.int64)
        faces = np.array(faces, np.float64).reshape(-1, 4 + len(FLAGS))
        is_face = (faces[:, 2:4] != 0).all(axis=1)
        image, faces = image[is_face], faces[is_face]
        places = [place for place, keep in zip(places, is_face, strict=True) if keep]

        def describe(k):
            file, line = places[k]
            return f"{file}, line {line}: face {' '.join(f'{v:g}' for v in faces[k, :4])} (x y w h)"

        checked = records_lib.check_boxes(
            np.concatenate([faces[:, :2], faces[:, :2] + faces[:, 2:4]], axis=1),
            ["face"] * len(faces),
            CLASS_NAMES,
            np.array(sizes, np.int64).reshape(-1, 2)[image],
            describe,
            strict,
        )
        flags = faces[checked.keep, 4:].astype(np.int32)
        annotations = records_lib.Annotations(
            image=image[checked.keep],
            boxes=checked.boxes,
            labels=checked.labels,
            ignore=flags[:, FLAGS.index("invalid")] == 1,
            area=np.prod(checked.boxes[:, 2:] - checked.boxes[:, :2], axis=1),
            num_images=len(paths),
            flags=flags,
        )
        num_empty = int((~is_face).sum())
        no_area = f"faces without width or height are dropped: {num_empty}"
        problems = (*bad_images.told("images"), *checked.problems, *notes)
        super().__init__(
            CLASS_NAMES,
            paths,
            image_ids,
            sizes,
            annotations,
            problems=(*problems, no_area) if num_empty else problems,
            dropped_boxes=num_empty + int((~checked.keep).sum()),
            clipped_boxes=checked.num_clipped,
            skipped_records=len(bad_images.sentences),
            exif=exif,
            sized=False,
        )


def _files(root, splits):
    """(split, annotation file) of each split."""
    folder = root / "wider_face_split"
    if not folder.is_dir():
        raise records_lib.DataError(
            f"data folder {root} has no folder wider_face_split; give the folder that holds "
            "WIDER_train, WIDER_val and wider_face_split"
        )
    there = sorted(file.name for file in folder.glob("wider_face_*_bbx_gt.txt"))
    known = ", ".join(re.sub(r"wider_face_(.*)_bbx_gt\.txt", r"\1", name) for name in there)
    if not splits:
        raise records_lib.DataError(f"no split is given; splits under {root}: {known or 'none'}")
    found = []
    for split in dict.fromkeys(splits):
        file = folder / f"wider_face_{split}_bbx_gt.txt"
        if file.name not in there:
            raise records_lib.DataError(
                f"split {split!r} needs the file {file}, which does not exist; "
                f"splits under {root}: {known or 'none'}"
            )
        found.append((split, file))
    return found


# ------------------------------------------------------------------------------------------------
# The annotation file


def _read(file, files):
    """[(line, name, [(line, face), ..])] of the images; a face is a list of 4 + 6 numbers.

    Args:
      files: `names.Files` of the images.
    """

    def is_there(name):
        return files.exact(name) or files.find(*names_lib.spellings(name))

    try:
        lines = names_lib.read_lines(file, is_there)
    except OSError as error:
        raise records_lib.DataError(
            f"annotation file {file} cannot be read ({error.strerror}); check its permissions"
        ) from error
    except ValueError as error:
        raise records_lib.DataError(f"annotation file {file} {error}") from error
    lines = [(number, line) for number, line in enumerate(lines, start=1) if line]
    if not lines:
        raise records_lib.DataError(f"annotation file {file} lists no images; download it again")
    lines.append((lines[-1][0] + 1, ""))  # the end: not a name, number or face

    def malformed(number, line, wanted):
        found = repr(line) if line else "the end of the file"
        return records_lib.DataError(
            f"annotation file {file}, line {number}: expected {wanted}, found {found}; "
            "correct the line or download the file again"
        )

    images, at = [], 0
    while at < len(lines) - 1:
        number, name = lines[at]
        if _is_numbers(name):
            raise malformed(number, name, "the name of an image")
        number_of_count, text = lines[at + 1]
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
            raise malformed(number_of_count, text, f"the number of faces of {name}")
        faces = []
        for k in range(int(text)):
            number_of_face, line = lines[min(at + 2 + k, len(lines) - 1)]
            face = _face(line)
            if face is None:
                wanted = f"face {k + 1} of {text} of {name}, as x y w h and six flags"
                raise malformed(number_of_face, line, wanted)
            faces.append((number_of_face, face))
        at += 2 + len(faces)
        if not faces and re.fullmatch(r"0(\s+0){9}", lines[at][1]):
            at += 1
        images.append((number, name, faces))
    return images


def _is_numbers(line):
    return re.fullmatch(r"[-+.\d\s]+", line) is not None


def _face(line):
    """The ten numbers of a line; None if it does not hold ten, or if a flag is out of range."""
    words = line.split()
    if len(words) != 4 + len(FLAGS) or not _is_numbers(line):
        return None
    try:
        box, flags = [float(word) for word in words[:4]], [int(word) for word in words[4:]]
    except ValueError:
        return None
    fits = all(0 <= flag <= largest for flag, largest in zip(flags, _LARGEST, strict=True))
    return [*box, *flags] if fits and max(map(abs, box)) < 2**31 else None
