"""Reading cases: what they must have, and images and arrays as the reference had them."""

import json
import types
import zipfile

import numpy as np
import parity_runs
import pytest

from benchmarks.parity import cases
from detlab import errors


def test_the_default_folders_lie_beside_the_folder_parity(tmp_path):
    for fixtures in (tmp_path / "parity", tmp_path / "parity" / "yolo"):
        args = types.SimpleNamespace(fixtures=fixtures, weights=None, images=None, data=None)
        assert cases.folders(args).weights.resolve() == tmp_path.resolve() / "weights"


def test_a_folder_with_the_name_of_a_case_is_one_sentence(fixtures, capsys):
    folder = fixtures(lambda info: None)
    (folder / "d.json").mkdir()
    with pytest.raises(errors.UserError, match="d.json cannot be read: Is a directory"):
        parity_runs.run(capsys, folder)


@pytest.mark.parametrize("key", ["source", "seed", "sampled", "batch_norm_in_train", "grad_drift"])
def test_a_case_without_one_of_its_keys_is_one_sentence(key, fixtures, capsys):
    with pytest.raises(
        errors.UserError, match=f"retinanet_r50_fpn.json is not a complete case: .*{key}"
    ):
        parity_runs.run(capsys, fixtures(lambda info: info.pop(key)))


def test_a_gradient_without_its_drift_is_one_sentence(compact, tmp_path, capsys):
    key = "neck.fpn_convs.0.conv.bias"
    info = json.loads((compact / f"{parity_runs.CASE}.json").read_text())
    del info["grad_drift"]["dots"][key]
    (tmp_path / f"{parity_runs.CASE}.json").write_text(json.dumps(info))
    with pytest.raises(
        errors.UserError, match=f"not a complete case: it lacks grad_drift.dots of {key}."
    ):
        parity_runs.run(capsys, tmp_path)


def test_damaged_or_absent_arrays_are_one_sentence(fixtures, capsys):
    folder = fixtures(lambda info: None)
    file = folder / f"{parity_runs.CASE}.npz"
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        header = archive.getinfo("image.npy").header_offset
    damaged = bytearray(whole)
    damaged[header + 100 : header + 200] = 100 * b"\xff"  # not a deflate stream
    file.write_bytes(damaged)
    with pytest.raises(errors.UserError, match="retinanet_r50_fpn.npz: damaged npz file"):
        parity_runs.run(capsys, folder)
    np.savez(file, image=np.zeros((2, 3, 128, 160), np.float32))
    with pytest.raises(
        errors.UserError, match="is not a complete case: it lacks arrays det_boxes_0, .*gt_"
    ):
        parity_runs.run(capsys, folder)


def test_images_without_objects_have_only_empty_slots():
    batch = parity_runs.made_case(True, [0, 2]).batch()
    assert batch.valid.tolist() == [[False, False, False], [True, True, False]]
    assert batch.labels.tolist() == [[0, 0, 0], [2, 2, 0]]
    assert parity_runs.made_case(True, [0, 0]).batch().boxes.shape == (2, 1, 4)


def test_blue_first_is_turned_around():
    rgb, bgr = (parity_runs.made_case(x, [0, 0]).batch().images for x in (True, False))
    np.testing.assert_array_equal(rgb, bgr[..., ::-1])


def test_a_sampled_array_is_compared_at_its_places_and_only_in_its_shape():
    made = parity_runs.made_case(True, [0, 0])
    assert made.as_stored("x", np.arange(6).reshape(2, 3)).tolist() == [0, 4]
    with pytest.raises(ValueError, match="shape"):
        made.as_stored("x", np.arange(6).reshape(3, 2))
