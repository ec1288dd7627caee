"""`detlab.load` and its predictor: the objects of `detlab demo`, in Python."""

import concurrent.futures
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

import detlab
from detlab import demo
from detlab.converters import convert, published
from detlab.data import coco_classes, shapes

OVERRIDES = {"model__score_threshold": 0.0, "predict__threshold": 0.001}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three images of two shapes, as files and as RGB arrays."""
    folder = tmp_path_factory.mktemp("photos")
    source = shapes.Shapes("val", num_images=3)
    images = [source[0]["image"], source[1]["image"][:80], source[2]["image"]]
    for name, image in zip("abc", images, strict=True):
        cv2.imwrite(str(folder / f"{name}.png"), image[..., ::-1])
    return [folder / f"{name}.png" for name in "abc"], images


@pytest.fixture(scope="module")
def predictor(tiny_run):
    return detlab.load(tiny_run, **OVERRIDES)


def assert_same(a, b, scores=0.0, boxes=0.0):
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_allclose(a.scores, b.scores, atol=scores, rtol=0)
    np.testing.assert_allclose(a.boxes, b.boxes, atol=boxes, rtol=0)


def test_import_of_the_package_is_light_and_its_names_are_lazy(repository):
    program = (
        "import sys, detlab; assert not {'jax', 'numpy', 'detlab.converters'} & set(sys.modules);"
        " assert {'load', 'build', 'read_config', 'UserError'} <= set(dir(detlab));"
        " assert detlab.UserError.__module__ == 'detlab.errors'; print(len(sys.modules))"
    )
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = detlab.lod


def test_the_objects_are_those_of_the_demo_bit_for_bit(predictor, tiny_run, photos, tmp_path):
    files, _ = photos
    words = ["--workdir", str(tiny_run), "--input", str(files[0].parent), "--output", str(tmp_path)]
    demo.main([*words, "--threshold", "0.001", "--config.model.score_threshold=0.0"])
    rows = json.loads((tmp_path / "detections.json").read_text())
    results = predictor(files)
    assert [len(result) for result in results] == [len(row["objects"]) for row in rows]
    for result, row in zip(results, rows, strict=True):
        assert [round(float(x), 4) for x in result.scores] == [o["score"] for o in row["objects"]]
        assert result.boxes.astype(float).round(2).tolist() == [o["box"] for o in row["objects"]]
        assert result.names == [o["class"] for o in row["objects"]]
        assert result.size == (row["height"], row["width"])


def test_every_form_of_an_image_gives_the_same(predictor, photos):
    (path, *_), (image, *_) = photos
    expected = predictor(path)
    assert len(expected) == 20 and expected.path == path
    for same in (str(path), image, Image.open(path), jax.numpy.asarray(image)):
        assert_same(predictor(same), expected)
    assert_same(predictor(image[..., ::-1], bgr=True), expected)
    stacked = predictor(np.stack([image, image[::-1]]))
    assert len(stacked) == 2
    assert_same(stacked[0], expected)
    grey = image[..., 0]
    assert_same(predictor(grey), predictor(np.repeat(grey[..., None], 3, axis=2)))
    assert predictor([]) == []


def test_a_pil_image_is_turned_upright_like_its_file(predictor, photos, tmp_path):
    _, (image, *_) = photos
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image[:80]).save(tmp_path / "turned.png", exif=exif)
    expected = predictor(tmp_path / "turned.png")
    assert expected.size == (128, 80)
    assert_same(predictor(Image.open(tmp_path / "turned.png")), expected)


def test_batches_are_padded_and_keep_the_order(predictor, tiny_run, photos):
    files, _ = photos
    batched = detlab.load(tiny_run, batch_size=2, **OVERRIDES)
    for one, other in zip(predictor(files), batched(iter(files)), strict=True):
        assert one.path == other.path
        assert_same(one, other, scores=1e-5, boxes=0.01)


def test_threads_share_one_program(tiny_run, photos):
    files, _ = photos
    fresh = detlab.load(tiny_run, **OVERRIDES)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fresh, [files[0]] * 8))
    assert len(fresh._compiled) == 1
    for result in found[1:]:
        assert_same(result, found[0])


def test_threshold_and_top_k_of_a_call_leave_the_next_call_alone(predictor, photos):
    (path, *_), _ = photos
    everything = predictor(path)
    least = float(everything.scores[4])
    assert len(predictor(path, threshold=least)) == 5
    assert len(predictor(path, top_k=3)) == 3
    assert_same(predictor(path), everything)
    for wrong in ({"threshold": 2}, {"top_k": 0}):
        with pytest.raises(detlab.UserError, match=f"^{next(iter(wrong))} is "):
            predictor(path, **wrong)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("https://example.com/a.jpg", "is a URL; download the image and give its path."),
        ("nowhere.jpg", "nowhere.jpg"),
        (".", "is a folder; give a list of its images."),
        (np.zeros((4, 4, 3)), "has type float64; it must be uint8"),
        (np.zeros((3, 8, 8), np.uint8), "so move the channels last."),
        (np.zeros((8, 8, 4), np.uint8), "so drop or repeat channels."),
        (np.zeros((0, 8, 3), np.uint8), "it must be"),
        ([3], "an image is a int; give a path"),
        ([None], "an image is a NoneType; give a path"),
        (Image.new("I;16", (4, 4)), "mode I;16; convert it to 8 bits"),
    ],
    ids=range(10),
)
def test_what_is_no_image_is_refused_with_a_sentence(predictor, image, sentence):
    with pytest.raises(detlab.UserError, match=".") as raised:
        predictor(image)
    assert sentence in str(raised.value)


# --------------------------------------------------------------------------------------------
# Results


@pytest.fixture
def result():
    return detlab.Result(
        boxes=np.float32([[0, 0, 10, 20], [5, 5, 9, 9], [1, 2, 3, 4]]),
        scores=np.float32([0.9, 0.5, 0.25]),
        labels=np.int32([2, 0, 2]),
        class_names=("cat", "dog", "traffic light"),
        size=(30, 40),
        image=lambda: np.zeros((30, 40, 3), np.uint8),
    )


def test_results_are_sliced_masked_and_filtered(result):
    assert len(result) == 3 and result.names == ["traffic light", "cat", "traffic light"]
    assert result[1].names == ["cat"] and result[-1].scores.tolist() == [0.25]
    assert [one.names[0] for one in result] == result.names
    assert result[:2].scores.tolist() == pytest.approx([0.9, 0.5])
    assert result[result.scores > 0.4].labels.tolist() == [2, 0]
    assert result[[2, 0]].scores.tolist() == pytest.approx([0.25, 0.9])
    assert len(result[[]]) == len(result[:0].where("cat")) == 0
    assert result.where(class_="traffic light", score=0.5).boxes.tolist() == [[0, 0, 10, 20]]
    assert len(result.where(class_=["cat", 2])) == 3 and len(result.where(class_=1)) == 0
    with pytest.raises(IndexError):
        result[3]
    with pytest.raises(IndexError, match="the mask has shape"):
        result[np.array([True, False])]


@pytest.mark.parametrize(
    ("class_", "sentence"),
    [
        ("dgo", "class 'dgo' does not exist; did you mean 'dog'?"),
        ("zebra", "class 'zebra' does not exist; `class_names` lists all."),
        (3, "class 3 does not exist; the labels are 0 to 2."),
    ],
)
def test_an_unknown_class_is_named(result, class_, sentence):
    with pytest.raises(detlab.UserError) as raised:
        result.where(class_=class_)
    assert str(raised.value) == sentence


def test_the_picture_is_drawn_written_and_shown(result, tmp_path):
    drawn = result.draw(tmp_path / "new" / "found.png", min_side=0)
    assert drawn.shape == (30, 40, 3) and drawn.any()
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "new" / "found.png"))[..., ::-1], drawn)
    assert result._repr_png_().startswith(b"\x89PNG")
    assert "traffic light 0.90" in repr(result) and "(40x30 px)" in repr(result)
    with pytest.raises(detlab.UserError, match="suffix"):
        result.draw(tmp_path / "found.docx")


def test_entries_of_coco_have_its_ids_for_its_classes_only(result):
    entries = result.to_coco(7)
    expected = {"image_id": 7, "category_id": 3, "bbox": [0, 0, 10, 20]}
    assert entries[0].pop("score") == pytest.approx(0.9) and entries[0] == expected
    assert [e["category_id"] for e in result.to_coco(7, (5, 6, 9))] == [9, 5, 9]
    of_coco = detlab.Result(
        result.boxes, result.scores, np.int32([0, 12, 79]), coco_classes.NAMES, (9, 9), None
    )
    assert [e["category_id"] for e in of_coco.to_coco(7)] == [1, 14, 90]
    assert len(coco_classes.NAMES) == len(coco_classes.IDS) == 80


def test_the_package_supervision_takes_the_result(result, monkeypatch):
    import supervision  # takes a second

    found = result.to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 3
    np.testing.assert_array_equal(found.xyxy, result.boxes)
    np.testing.assert_array_equal(found.confidence, result.scores)
    assert found.class_id.tolist() == [2, 0, 2]
    assert found.data["class_name"].tolist() == result.names
    assert len(result[:0].to_supervision()) == 0
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(detlab.UserError, match="pip install supervision"):
        result.to_supervision()


# --------------------------------------------------------------------------------------------
# Where a detector comes from


def test_weights_of_other_code_are_converted_in_memory(shared_dir, photos, capsys):
    found = detlab.load(shared_dir / "weights" / "yolov5n-v6.pt")
    assert found.config.detector == "yolov5" and found.class_names == coco_classes.NAMES
    assert "wrote" not in capsys.readouterr().out
    darknet = detlab.load(
        shared_dir / "weights" / "yolo-fastest-1.1.weights",
        options=f"--cfg {shared_dir / 'weights' / 'yolo-fastest-1.1.cfg'}",
    )
    assert darknet.config.detector == "darknet" and darknet.class_names == coco_classes.NAMES


def test_the_number_of_classes_is_that_of_the_file(tiny_run, tmp_path):
    back = ["--reverse", "--input", str(tiny_run), "--output", str(tmp_path / "mine.pth")]
    convert.main(back)
    config = tmp_path / "wide.py"
    config.write_text(
        "from detlab import config\ndef get_config():\n"
        "    c = config.from_json(INFO)\n    c.model.num_classes = 80\n    return c\n".replace(
            "INFO", repr(json.loads(json.dumps(_config_of(tiny_run))))
        )
    )
    found = detlab.load(tmp_path / "mine.pth", config=str(config))
    assert found.config.model.num_classes == 4
    with pytest.raises(detlab.UserError, match="num_classes is 5"):
        detlab.load(tmp_path / "mine.pth", config=str(config), model__num_classes=5)
    with pytest.raises(detlab.UserError, match="may be one of .*retinanet.*; name its experiment"):
        detlab.load(tmp_path / "mine.pth")


def _config_of(run):
    from detlab.run import checkpoint

    return checkpoint.load_weights(run).info["config"]


@pytest.mark.parametrize(
    ("where", "arguments", "sentence"),
    [
        ("nowhere/at_all", {}, "nowhere/at_all does not exist; give a run, a weights folder"),
        (
            "reppoints_v2_r50_fpn_1x_coco",
            {},
            "which only a browser downloads; save it and load its path",
        ),
        ("yolov5nn", {}, "is no published model; did you mean 'yolov5n'?"),
        ("hf://one", {}, "hf://one is no address on the hub; write hf://owner/name"),
        ("RUN", {"options": "--bgr"}, "options are for weight files; "),
        ("RUN", {"checkpoint": "last", "config": "retinanet_voc"}, "remove config, or give the"),
        ("RUN", {"checkpoint": "77"}, "has no checkpoint '77'; give best, last, or one of"),
        ("RUN", {"batch_size": 0}, "batch_size is 0; it must be at least 1."),
        ("RUN", {"model__deth": 3}, "config.model.deth: detector retinanet has no such field."),
        ("RUN", {"prdict__top_k": 3}, "unknown key config.prdict.top_k: no 'prdict'"),
    ],
)
def test_a_detector_that_cannot_be_loaded_is_one_sentence(tiny_run, where, arguments, sentence):
    with pytest.raises(detlab.UserError) as raised:
        detlab.load(str(tiny_run) if where == "RUN" else where, **arguments)
    assert sentence in str(raised.value)


def test_options_of_a_file_write_nothing(shared_dir):
    with pytest.raises(detlab.UserError, match="options has --output, but nothing is written"):
        detlab.load(shared_dir / "weights" / "yolov5n-v6.pt", options="--output somewhere")


def test_every_published_file_has_a_name_of_its_own():
    rows = json.loads(open(published.__file__.replace("published.py", "models.json")).read())
    assert len(published.models()) == len(rows["models"])
    assert {"yolov5n", "yolov4-tiny", "retinanet_r50_fpn_1x_coco"} <= published.models().keys()


def test_configs_are_read_with_keys_in_either_form():
    config = detlab.read_config("retinanet_voc", model__depth=18, **{"optim.lr": 0.5})
    assert config.model.depth == 18 and config.optim.lr == 0.5
    config = detlab.read_config("retinanet_shapes:tiny", data__canvases=((64, 64),))
    assert config.data.canvases == ((64, 64),)
    assert detlab.build(config).frozen is not None
    with pytest.raises(detlab.UserError, match="Did you mean retinanet_voc"):
        detlab.read_config("retinanet_vocc")


# --------------------------------------------------------------------------------------------
# Folders that others can load


@pytest.fixture(scope="module")
def packed(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "shapes"
    convert.main(["--pack", str(tiny_run), "--output", str(folder)])
    return folder


def test_a_packed_folder_is_the_run_it_was(packed, predictor, photos, tmp_path):
    (path, *_), _ = photos
    assert sorted(p.name for p in packed.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    found = detlab.load(packed, **OVERRIDES)
    assert_same(found(path), predictor(path))
    assert found.class_names == predictor.class_names
    card = (packed / "README.md").read_text()
    assert "RetinaNet" in card and ", ".join(shapes.CLASS_NAMES) in card and "AP50" in card
    words = ["--workdir", str(packed), "--input", str(path), "--output", str(tmp_path)]
    demo.main([*words, "--threshold", "0.001", "--config.model.score_threshold=0.0"])
    (row,) = json.loads((tmp_path / "detections.json").read_text())
    assert len(row["objects"]) == 20


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("config.json", None, "has no config.json, so it is no complete weights folder"),
        ("config.json", b"{", "config.json is no JSON"),
        (
            "config.json",
            b'{"architectures": ["Detr"]}',
            "is not that of a weights folder of detlab",
        ),
        ("config.json", b'{"format": "detlab", "config": 3}', "its `config` is damaged"),
        ("model.safetensors", None, "has no model.safetensors, so it is no complete"),
        ("model.safetensors", b"half", "model.safetensors is damaged"),
    ],
)
def test_a_damaged_or_foreign_folder_is_one_sentence(packed, tmp_path, file, content, sentence):
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(detlab.UserError) as raised:
        detlab.load(tmp_path)
    assert sentence in str(raised.value) and str(raised.value).count("\n") == 0


@pytest.fixture
def hub_of(packed, tmp_path):
    """The environment of a process that finds the packed folder on a hub of this machine."""
    sizes = {p.name: p.stat().st_size for p in packed.iterdir()} | {"x.py": 9}

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            self._answer(body=True)

        def _answer(self, body):
            path = urllib.parse.unquote(self.path.partition("?")[0])
            name = path.rpartition("/")[2]
            if path.startswith("/api/models/owner/shapes/revision/"):
                names = [{"rfilename": name} for name in sizes]
                content = {"id": "owner/shapes", "sha": "a" * 40, "siblings": names}
                self._send(200, json.dumps(content).encode(), {}, body)
            elif path.startswith("/api/models/owner/shapes/tree/"):
                content = [
                    {"type": "file", "path": n, "size": s, "oid": "b" * 40}
                    for n, s in sizes.items()
                ]
                self._send(200, json.dumps(content).encode(), {}, body)
            elif path.startswith("/owner/shapes/resolve/") and (packed / name).is_file():
                data = (packed / name).read_bytes()
                etag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": "a" * 40}
                self._send(200, data, etag, body)
            else:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)

        def _send(self, status, data, headers, body):
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    server.shutdown()


def test_a_folder_of_the_hub_is_downloaded_and_loaded(hub_of, packed, repository, tmp_path):
    program = (
        "import detlab, sys, pathlib\n"
        "found = detlab.load('hf://owner/shapes')\n"
        "print(found.config.detector, *found.class_names)\n"
        "try:\n    detlab.load('hf://owner/nothing@v2')\n"
        "except detlab.UserError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, env=hub_of, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, sentence = done.stdout.splitlines()
    assert first == " ".join(["retinanet", *shapes.CLASS_NAMES])
    assert sentence.startswith("hf://owner/nothing@v2 cannot be downloaded (no such repo")
    assert not list(tmp_path.rglob("x.py")), "only the files of a packed folder are downloaded"


def test_the_package_of_the_hub_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(detlab.UserError) as raised:
        detlab.load("hf://owner/name")
    assert 'run `pip install "detlab[hub]"`' in str(raised.value)


def test_only_a_whole_detector_with_its_config_is_packed(packed, tiny_run, tmp_path):
    with pytest.raises(detlab.UserError, match="already exists; name a new folder"):
        convert.main(["--pack", str(tiny_run), "--output", str(packed)])
    with pytest.raises(detlab.UserError, match="--output is missing"):
        convert.main(["--pack", str(tiny_run)])
    with pytest.raises(detlab.UserError, match="--bgr cannot be used with --pack"):
        convert.main(["--pack", str(tiny_run), "--output", str(tmp_path / "x"), "--bgr"])
