"""Data sets of TensorFlow Datasets: small ones are prepared here and read back."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tensorflow_datasets_lib
import tfds_writer
import turned

from detlab.data import loader, records, settings, tfds

features_lib = tensorflow_datasets_lib.features
NAMES = ("cat", "dog")


def picture(number, height=40, width=60):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, extension=".png"):
    # A file object: TFDS would encode an array with TensorFlow.
    return io.BytesIO(cv2.imencode(extension, image[..., ::-1])[1].tobytes())


def bbox(x1, y1, x2, y2, height=40, width=60):
    return features_lib.BBox(ymin=y1 / height, xmin=x1 / width, ymax=y2 / height, xmax=x2 / width)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder of prepared data sets like those of VOC, COCO and WIDER FACE in TFDS."""
    data_dir = tmp_path_factory.mktemp("tfds")
    label = features_lib.ClassLabel(names=NAMES)
    tfds_writer.prepare(
        data_dir,
        "like_voc",
        {
            "image": features_lib.Image(encoding_format="png"),
            "image/filename": features_lib.Text(),
            "labels": features_lib.Sequence(label),
            "objects": features_lib.Sequence(
                {
                    "bbox": features_lib.BBoxFeature(),
                    "label": label,
                    "pose": features_lib.ClassLabel(names=["left", "right"]),
                    "is_difficult": np.bool_,
                }
            ),
        },
        {
            "train": [
                {
                    "image": encoded(picture(number)),
                    "image/filename": f"{number:06}.jpg",
                    "labels": [],
                    "objects": [
                        {
                            "bbox": bbox(k, 2 * k, k + 9, 40),
                            "label": k % 2,
                            "pose": 1,
                            "is_difficult": k == 1,
                        }
                        for k in range(number)
                    ],
                }
                for number in range(4)
            ],
            "test": [
                {
                    "image": encoded(picture(9, 30, 30)),
                    "image/filename": "000009.jpg",
                    "labels": [],
                    "objects": [],
                }
            ],
        },
    )
    tfds_writer.prepare(
        data_dir,
        "like_coco",
        {
            "picture": features_lib.Image(encoding_format="jpeg"),
            "image/id": np.int64,
            "things": features_lib.Sequence(
                {
                    "area": np.int64,
                    "box": features_lib.BBoxFeature(),
                    "category": label,
                    "is_crowd": np.bool_,
                }
            ),
        },
        {
            "validation": [
                {
                    "picture": encoded(picture(0), ".jpg"),
                    "image/id": 700,
                    "things": [
                        {"area": 55, "box": bbox(0, 0, 60, 40), "category": 1, "is_crowd": True},
                        {"area": 7, "box": bbox(3, 3, 9, 9), "category": 0, "is_crowd": False},
                    ],
                }
            ]
        },
    )
    faces = {"bbox": features_lib.BBoxFeature(), "blur": np.uint8, "invalid": np.bool_}
    tfds_writer.prepare(
        data_dir,
        "like_wider",
        {"image": features_lib.Image(encoding_format="png"), "faces": features_lib.Sequence(faces)},
        {
            "train": [
                {
                    "image": encoded(picture(k)),
                    "faces": [
                        {"bbox": bbox(1, 2, 3, 4), "blur": 2, "invalid": False},
                        {"bbox": bbox(5, 6, 7, 8), "blur": 0, "invalid": True},
                    ],
                }
                for k in range(2)
            ]
        },
    )
    return data_dir


def order(source):
    """Positions sorted by image id, because TFDS shuffles the examples."""
    return sorted(range(len(source)), key=source.image_id)


def test_what_was_prepared_comes_back(data_dir):
    source = tfds.Tfds("like_voc", ("train",), data_dir)
    assert len(source) == 4 and source.class_names == NAMES and source.problems == ()
    positions = order(source)
    assert [source.image_id(i) for i in positions] == [f"{k:06}.jpg" for k in range(4)]
    for number, i in enumerate(positions):
        record = source[i]
        np.testing.assert_array_equal(record["image"], picture(number))
        assert record["index"] == i and source.size(i) == (40, 60)
        expected = np.array([[k, 2 * k, k + 9, 40] for k in range(number)], np.float32)
        # TFDS stores fractions of a side in float32: 60 px * 2**-24, and the result is rounded.
        np.testing.assert_allclose(record["boxes"], expected.reshape(-1, 4), atol=1e-5)
        np.testing.assert_array_equal(record["labels"], np.arange(number) % 2)
        np.testing.assert_array_equal(record["ignore"], np.arange(number) == 1)
        np.testing.assert_allclose(
            record["area"], [9 * (40 - 2 * k) for k in range(number)], rtol=1e-5
        )
        annotation = source.annotation(i)
        assert annotation.keys() == record.keys() - {"image"}
        for name, dtype in (("boxes", "f4"), ("labels", "i4"), ("ignore", "?"), ("area", "f4")):
            assert annotation[name].dtype == np.dtype(dtype)


def test_features_are_found_by_their_types_and_crowds_are_ignored(data_dir):
    source = tfds.Tfds("like_coco", "validation", data_dir)
    np.testing.assert_array_equal(source[0]["boxes"], [[0, 0, 60, 40], [3, 3, 9, 9]])
    np.testing.assert_array_equal(source[0]["labels"], [1, 0])
    np.testing.assert_array_equal(source[0]["ignore"], [True, False])
    np.testing.assert_array_equal(source[0]["area"], [55, 7])
    assert source.image_id(0) == 700
    exact = cv2.imdecode(np.frombuffer(encoded(picture(0), ".jpg").getvalue(), np.uint8), 1)
    np.testing.assert_array_equal(source[0]["image"], exact[..., ::-1])


def test_objects_without_classes_are_of_one(data_dir):
    source = tfds.Tfds("like_wider", "train", data_dir)
    assert source.class_names == ("object",)
    np.testing.assert_array_equal(source.annotation(1)["labels"], [0, 0])
    np.testing.assert_array_equal(source.annotation(1)["ignore"], [False, True])
    assert [source.image_id(i) for i in range(2)] == ["train/0", "train/1"]
    source = tfds.Tfds("like_wider", "train", data_dir, ("face",))
    assert source.class_names == ("face",) and len(source.annotation(0)["boxes"]) == 2
    with pytest.raises(records.DataError, match="no class 'face'; its classes: object"):
        tfds.Tfds("like_wider", "train", data_dir, ("face", "hand"))


def test_splits_may_be_several_and_parts(data_dir):
    source = tfds.Tfds("like_voc", ("test", "train[:50%]"), data_dir)
    assert len(source) == 3 and source.size(0) == (30, 30)
    assert source.image_id(0) == "000009.jpg"
    assert source.name(2) == f"train[:50%]/1 of like_voc in {data_dir}"
    twice = tfds.Tfds("like_voc", ("test", "train+test"), data_dir)
    assert twice.image_id(0) == "test/0" and len({twice.image_id(i) for i in range(6)}) == 6


def test_chosen_classes_leave_the_others_out_and_tell_it(data_dir):
    source = tfds.Tfds("like_voc", "train", data_dir, ("dog",))
    assert source.class_names == ("dog",) and source.dropped_boxes == 4
    assert source.problems == ("objects of class cat, which is not in class_names, are dropped: 4",)
    with pytest.raises(records.DataError, match="has no class 'dgo'; its classes: cat, dog"):
        tfds.Tfds("like_voc", "train", data_dir, ("dgo",))


def test_a_copy_for_a_worker_process_gives_the_same(data_dir):
    source = tfds.Tfds("like_voc", ("train",), data_dir)
    content = pickle.dumps(source)
    assert len(content) < 20_000
    back = pickle.loads(content)
    for one, other in zip(source, back, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_the_loader_reads_it(data_dir):
    batches = loader.eval_batches(
        tfds.Tfds("like_coco", "validation", data_dir),
        settings.Settings(canvases=((64, 64),), max_boxes=4, pad_value=0),
        batch_size=1,
    )
    np.testing.assert_array_equal(next(batches).batch.valid, [[False, True, False, False]])


SCRIPT = """
import sys
from detlab.data import sources, tfds
assert "tensorflow_datasets" not in sys.modules
source = tfds.Tfds("like_voc", ("train",), sys.argv[1])
assert source[0]["image"].shape == (40, 60, 3)
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
"""


def test_tfds_is_imported_only_where_it_is_opened_and_tensorflow_never(
    data_dir, repository, tmp_path
):
    stand_in = tmp_path / "tensorflow"  # can be found, but importing it is fatal
    stand_in.mkdir()
    (stand_in / "__init__.py").write_text("raise SystemExit('TensorFlow is imported')")
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(data_dir)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(repository), str(tmp_path)])},
        timeout=120,
    )


# ------------------------------------------------------------------------------------------------
# Bad input


def test_data_set_that_is_not_prepared_is_named_with_how_to_prepare_it(data_dir, tmp_path):
    with pytest.raises(records.DataError) as raised:
        tfds.Tfds("voc/2007", "train", data_dir)
    message = str(raised.value)
    assert "(prepared there: like_coco:1.0.0, like_voc:1.0.0, like_wider:1.0.0)" in message
    assert "tfds.builder('voc/2007', data_dir=" in message
    with pytest.raises(records.DataError, match=r"prepared there: none"):
        tfds.Tfds("voc/2007", "train", tmp_path)
    with pytest.raises(records.DataError, match="nowhere does not exist; give the folder"):
        tfds.Tfds("voc/2007", "train", tmp_path / "nowhere")


def test_of_several_versions_and_configs_one_must_be_named(data_dir, tmp_path):
    for folder in ("dogs/big/1.0.0", "dogs/big/2.0.0", "dogs/small/1.0.0"):
        shutil.copytree(data_dir / "like_voc" / "1.0.0", tmp_path / folder)
    with pytest.raises(
        records.DataError, match="name one of dogs/big:1.0.0, dogs/big:2.0.0, dogs/small:1.0.0$"
    ):
        tfds.Tfds("dogs", "train", tmp_path)
    with pytest.raises(records.DataError, match="name one of dogs/big:1.0.0, dogs/big:2.0.0$"):
        tfds.Tfds("dogs/big", "train", tmp_path)
    with pytest.raises(records.DataError, match="'dogs/bi' is not prepared"):
        tfds.Tfds("dogs/bi", "train", tmp_path)
    assert tfds._prepared_folder("dogs/small", tmp_path) == tmp_path / "dogs" / "small" / "1.0.0"
    assert tfds._prepared_folder("dogs/big:2.0.0", tmp_path).name == "2.0.0"


@pytest.mark.parametrize("split", ["tset", "train[:x]", "", "train[:0]"])
def test_unknown_split_tells_those_there(data_dir, split):
    with pytest.raises(records.DataError, match="has no split .*; its splits: train, test, and"):
        tfds.Tfds("like_voc", split, data_dir)


def test_no_split_is_refused(data_dir):
    with pytest.raises(records.DataError, match="no split .* is given; its splits: train, test"):
        tfds.Tfds("like_voc", (), data_dir)


def test_other_file_formats_are_told_to_be_prepared_again(data_dir, tmp_path):
    folder = tmp_path / "like_voc" / "1.0.0"
    shutil.copytree(data_dir / "like_voc" / "1.0.0", folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(records.DataError, match="as tfrecord, which .* file_format='array_record'"):
        tfds.Tfds("like_voc", "train", tmp_path)


def test_data_sets_without_boxes_or_with_unclear_ones_are_named(tmp_path):
    image = features_lib.Image(encoding_format="png")
    sequence = features_lib.Sequence({"bbox": features_lib.BBoxFeature()})
    label = features_lib.ClassLabel(names=NAMES)
    other_format = features_lib.Sequence({"bbox": features_lib.BBoxFeature(bbox_format="XYWH")})
    two_classes = features_lib.Sequence(
        {"bbox": features_lib.BBoxFeature(), "colour": label, "shape": label}
    )
    for features, fault in (
        ({"image": image}, "there is no sequence of objects with a BBoxFeature in data set d"),
        ({"image": image, "boxes": features_lib.Sequence(features_lib.BBoxFeature())}, "no seq"),
        ({"bags": sequence}, "there is no image feature in data set d; prepare"),
        (
            {"left": image, "right": image, "bags": sequence},
            "more than one image feat.*: left, right",
        ),
        ({"image": image, "bags": sequence, "bins": sequence}, "more than one sequence of objects"),
        ({"image": image, "bags": two_classes}, "one ClassLabel of 'bags' .*: colour, shape"),
        ({"image": image, "bags": other_format}, "boxes in the format XYWH; prepare it with rela"),
    ):
        with pytest.raises(records.DataError, match=fault):
            tfds._Layout(features_lib.FeaturesDict(features), "d")


def make_bad(folder, box=(1, 2, 3, 4), label=0, image=None):
    """A data set with a good and a bad example."""
    good = {"bbox": bbox(1, 2, 3, 4), "label": 1}
    rows = [
        {"image": encoded(picture(0)), "bags": [good]},
        {"image": image or encoded(picture(1)), "bags": [good, {"bbox": box, "label": label}]},
    ]
    features = {
        "image": features_lib.Image(encoding_format="png"),
        "bags": features_lib.Sequence({
            "bbox": features_lib.BBoxFeature(), "label": features_lib.ClassLabel(names=NAMES),
        }),
    }  # fmt: skip
    tfds_writer.prepare(folder, "bad", features, {"train": rows})


def test_unusable_object_is_named_or_left_out(tmp_path):
    for folder, changes, fault in (
        ("a", dict(box=bbox(5, 5, 5, 9)), r"object 2 \(cat, x1 y1 x2 y2 5 5 5 9\) has no area"),
        ("b", dict(box=bbox(1, 2, 3, 4), label=-1), r"object 2 \(\(none\), .* has a class that is"),
    ):
        make_bad(tmp_path / folder, **changes)
        with pytest.raises(records.DataError, match=rf"of bad in .*, {fault}") as raised:
            tfds.Tfds("bad", "train", tmp_path / folder)
        assert raised.value.can_leave_out
        source = tfds.Tfds("bad", "train", tmp_path / folder, strict=False)
        assert len(source) == 2 and source.dropped_boxes == 1 and len(source.problems) == 1
        assert sorted(len(r["boxes"]) for r in source) == [1, 1]


def test_unusable_image_is_named_or_skipped(tmp_path):
    make_bad(tmp_path, bbox(5, 5, 9, 9), image=io.BytesIO(b"hello"))
    with pytest.raises(records.DataError, match=r"image train/\d of bad in .* cannot be decoded"):
        tfds.Tfds("bad", "train", tmp_path)
    source = tfds.Tfds("bad", "train", tmp_path, strict=False)
    assert len(source) == 1 and source.skipped_records == 1 and len(source.problems) == 1
    np.testing.assert_array_equal(source[0]["image"], picture(0))


def test_damaged_file_is_named(data_dir, tmp_path):
    shutil.copytree(data_dir / "like_voc", tmp_path / "like_voc")
    source = tfds.Tfds("like_voc", "train", tmp_path)
    (file,) = tmp_path.glob("like_voc/1.0.0/*train*")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(records.DataError, match="image train/0 of like_voc in .* cannot be read"):
        tfds.Tfds("like_voc", "train", tmp_path)
    file.unlink()
    with pytest.raises(records.DataError, match="No such file .*; prepare the data set again"):
        pickle.loads(pickle.dumps(source))[0]


@pytest.mark.parametrize("exif", ["auto", "stored", "upright"])
def test_turned_pictures_stay_as_tfds_reads_them_unless_asked(tmp_path, exif):
    pictures = [turned.encoded(turned.upright(), orientation) for orientation in (1, 6)]
    tfds_writer.prepare(
        tmp_path,
        "photos",
        {
            "image": features_lib.Image(encoding_format="jpeg"),
            "objects": features_lib.Sequence({"bbox": features_lib.BBoxFeature()}),
        },
        {
            "train": [
                {"image": io.BytesIO(data), "objects": [{"bbox": bbox(*turned.BOX)}]}
                for data in pictures
            ]
        },
    )
    source = tfds.Tfds("photos", "train", tmp_path, exif=exif)
    shape = (40, 60) if exif == "upright" else (60, 40)
    assert source.size(1) == source[1]["image"].shape[:2] == shape
    if exif == "upright":
        np.testing.assert_allclose(source.annotation(1)["boxes"], [turned.BOX], rtol=1e-6)
    assert source.problems == (
        (
            "1 of 2 images have an EXIF orientation and stay as stored, as TFDS reads them (the "
            "first: train/1); config.data.exif=upright turns them",
        )
        if exif == "auto"
        else ()
    )
