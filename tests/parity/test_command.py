"""What the parity command does with cases that it cannot run or that are wrong; no compiling."""

import json
import types
import zipfile

import numpy as np
import parity_runs
import pytest

from benchmarks import parity
from benchmarks import parity_cases
from detlab import errors


def other_model(info):
    info["model_cfg"]["bbox_head"]["loss_cls"]["type"] = "GHMC"


@pytest.fixture
def fixtures(compact, tmp_path):
    """`fixtures(change)`: a folder with the compact case, changed."""
    return lambda change: parity_runs.changed(compact, tmp_path, change)


def test_a_case_without_a_model_is_listed_and_fails_when_it_was_asked_for(fixtures, capsys):
    folder = fixtures(other_model)
    for flags, status in (((), 0), (("--case", parity_runs.CASE), 1), (("--all",), 1)):
        run = parity_runs.run(capsys, folder, *flags)
        assert run.status == status
        assert f"missing  {parity_runs.CASE}: no model for mmdet 3.3.0" in run.text


def test_no_recorded_case_is_known_to_two_adapters(shared_dir):
    for info in parity_cases.find(shared_dir / "parity").values():
        parity._kind(info)  # raises where one is


def test_a_case_that_two_adapters_know_is_one_sentence(fixtures, monkeypatch, capsys):
    folder = fixtures(lambda info: None)
    monkeypatch.setattr(parity, "ADAPTERS", 2 * parity.ADAPTERS)
    with pytest.raises(
        errors.UserError, match="is known to the adapters of retinanet and retinanet"
    ):
        parity_runs.run(capsys, folder)


def test_published_weights_are_looked_for_in_their_folder(fixtures, tmp_path, capsys):
    folder = fixtures(other_model)
    (folder / "yolo").mkdir()
    (folder / "yolo" / "tiny.json").write_text(json.dumps({"weights": "tiny.weights"}))
    (folder / "figures.json").write_text("[]")  # no case
    weights = tmp_path / "published"
    weights.mkdir()
    run = parity_runs.run(capsys, folder, "--weights", str(weights))
    assert "yolo/tiny: no model for published weights" in run.text
    assert f"tiny.weights is not in {weights}" in run.text
    (weights / "tiny.weights").touch()
    run = parity_runs.run(capsys, folder, "--weights", str(weights))
    assert f"tiny.weights is in {weights}" in run.text
    assert "2 cases: 0 passed, 0 failed, 2 missing" in run.text


def test_the_default_folders_lie_beside_the_folder_parity(tmp_path):
    for fixtures in (tmp_path / "parity", tmp_path / "parity" / "yolo"):
        args = types.SimpleNamespace(fixtures=fixtures, weights=None, images=None, data=None)
        assert parity.case_folders(args).weights.resolve() == tmp_path.resolve() / "weights"


def test_the_json_holds_what_is_printed(fixtures, tmp_path, capsys):
    file = tmp_path / "out" / "parity.json"
    parity_runs.run(capsys, fixtures(other_model), "--json", str(file))
    (row,) = json.loads(file.read_text())["cases"]
    assert (row["case"], row["status"]) == (parity_runs.CASE, "missing")


def unmapped(info):
    info["model_cfg"]["backbone"]["avg_down"] = True


def normalised_neck(info):
    info["model_cfg"]["neck"]["norm_cfg"] = {"type": "GN"}


def picky_assigner(info):
    info["train_cfg"]["assigner"]["min_pos_iou"] = 0.3


def wrong_value(info):
    info["model_cfg"]["backbone"]["depth"] = 42


def absent(info):
    del info["test_cfg"]["score_thr"]


@pytest.mark.parametrize(
    "change, words",
    [
        (unmapped, "model_cfg.backbone.avg_down is True, which detlab does not map"),
        (normalised_neck, "model_cfg.neck.norm_cfg is {'type': 'GN'}, which detlab does not map"),
        (picky_assigner, "train_cfg.assigner.min_pos_iou is 0.3; detlab has only 0"),
        (wrong_value, "depth is 42; it must be one of"),
        (absent, "test_cfg.score_thr is missing"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_configuration_that_detlab_does_not_have_is_refused(change, words, fixtures, capsys):
    with pytest.raises(errors.UserError, match=words.replace("{", r"\{")):
        parity_runs.run(capsys, fixtures(change))


def test_weights_of_another_seed_are_refused(fixtures, capsys):
    folder = fixtures(lambda info: info.update(seed=7))
    with pytest.raises(errors.UserError, match="retinanet_r50_fpn: the weights .* weights_sha256"):
        parity_runs.run(capsys, folder)


def test_wrong_names_are_one_sentence(fixtures, tmp_path, capsys):
    folder = fixtures(lambda info: None)
    for flags, words in (
        (("--case", "retinanet_r50"), "did you mean retinanet_r50_fpn"),
        (("--case", "x"), "there are: retinanet_r50_fpn"),
        (("--images", str(tmp_path / "none")), "none is not a folder"),
    ):
        with pytest.raises(errors.UserError, match=words):
            parity_runs.run(capsys, folder, *flags)
    with pytest.raises(errors.UserError, match="none is not a folder"):
        parity_runs.run(capsys, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.UserError, match="empty has no case"):
        parity_runs.run(capsys, tmp_path / "empty")
    (folder / f"{parity_runs.CASE}.npz").unlink()
    with pytest.raises(errors.UserError, match="retinanet_r50_fpn.npz: cannot be read: No such"):
        parity_runs.run(capsys, folder)
    (folder / f"{parity_runs.CASE}.json").write_text("{")
    with pytest.raises(errors.UserError, match="is not JSON"):
        parity_runs.run(capsys, folder)


def test_a_folder_with_the_name_of_a_case_is_one_sentence(fixtures, capsys):
    folder = fixtures(lambda info: None)
    (folder / "d.json").mkdir()
    with pytest.raises(errors.UserError, match="d.json cannot be read: Is a directory"):
        parity_runs.run(capsys, folder)


@pytest.mark.parametrize("key", ["source", "seed", "sampled", "batch_norm_in_train", "grad_drift"])
def test_a_case_without_one_of_its_keys_is_one_sentence(key, fixtures, capsys):
    with pytest.raises(errors.UserError, match=f"retinanet_r50_fpn.json is no whole case: .*{key}"):
        parity_runs.run(capsys, fixtures(lambda info: info.pop(key)))


def test_a_gradient_without_its_drift_is_one_sentence(compact, tmp_path, capsys):
    key = "neck.fpn_convs.0.conv.bias"
    info = json.loads((compact / f"{parity_runs.CASE}.json").read_text())
    del info["grad_drift"]["dots"][key]
    (tmp_path / f"{parity_runs.CASE}.json").write_text(json.dumps(info))
    with pytest.raises(errors.UserError, match=f"no whole case: no grad_drift.dots of {key}."):
        parity_runs.run(capsys, tmp_path)


def test_damaged_or_absent_arrays_are_one_sentence(fixtures, capsys):
    folder = fixtures(lambda info: None)
    file = folder / f"{parity_runs.CASE}.npz"
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        header = archive.getinfo("image.npy").header_offset
    damaged = bytearray(whole)
    damaged[header + 100 : header + 200] = 100 * b"\xff"  # no stream of deflate
    file.write_bytes(damaged)
    with pytest.raises(errors.UserError, match="retinanet_r50_fpn.npz: damaged npz file"):
        parity_runs.run(capsys, folder)
    np.savez(file, image=np.zeros((2, 3, 128, 160), np.float32))
    with pytest.raises(errors.UserError, match="is no whole case: no array det_boxes_0, .*gt_"):
        parity_runs.run(capsys, folder)


def case(bgr_to_rgb, counts):
    image = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    arrays = {"image": image}
    for i, count in enumerate(counts):
        arrays[f"gt_boxes_{i}"] = np.ones((count, 4), np.float32)
        arrays[f"gt_labels_{i}"] = np.full(count, 2, np.int32)
    info = {
        "gt_counts": counts,
        "model_cfg": {"data_preprocessor": {"bgr_to_rgb": bgr_to_rgb}},
        "sampled": {"x": {"shape": [2, 3], "step": 4}},
        "batch_norm_in_train": {"batch_statistics": 0},
    }
    return parity_cases.Case("made", info, arrays, None)


def test_images_without_objects_have_only_empty_slots():
    batch = case(True, [0, 2]).batch()
    assert batch.valid.tolist() == [[False, False, False], [True, True, False]]
    assert batch.labels.tolist() == [[0, 0, 0], [2, 2, 0]]
    assert case(True, [0, 0]).batch().boxes.shape == (2, 1, 4)


def test_blue_first_is_turned_around():
    rgb, bgr = case(True, [0, 0]).batch().images, case(False, [0, 0]).batch().images
    np.testing.assert_array_equal(rgb, bgr[..., ::-1])


def test_a_sampled_array_is_compared_at_its_places_and_only_in_its_shape():
    made = case(True, [0, 0])
    assert made.as_stored("x", np.arange(6).reshape(2, 3)).tolist() == [0, 4]
    with pytest.raises(ValueError, match="shape"):
        made.as_stored("x", np.arange(6).reshape(3, 2))


def test_a_recorded_map_that_nothing_is_compared_with_misses():
    made = case(True, [0, 0])
    names = ("image0_x_0", "image1_fpn_0", "train_assign.a.0.gt_inds", "train_targets.b.0.0")
    made.arrays.update(x=np.zeros(2, np.float32), det_boxes_0=np.zeros((0, 4)))
    made.arrays.update({name: np.zeros(3) for name in names})
    lines, not_compared = parity._array_lines(made, {"x": np.zeros((3, 2), np.float32)}, ())
    kinds = ("map", "neck", "assignment", "targets")
    expected = ["map x", *(f"{kind} {name}" for kind, name in zip(kinds, names))]
    assert [line.quantity for line in lines] == expected
    assert not any(line.passed for line in lines)
    assert "shape" in lines[0].note
    assert all("nothing to compare" in line.note for line in lines[1:])
    assert not not_compared


def test_only_what_the_adapter_names_may_be_absent_and_is_listed():
    made = case(True, [0, 0])
    made.arrays.update({name: np.zeros(3) for name in ("train_a.0.scores", "train_a.0.scores_0")})
    lines, not_compared = parity._array_lines(made, {}, (r"train_a\.\d\.scores",))
    assert [line.quantity for line in lines] == ["map train_a.0.scores_0"]
    assert not_compared == ["train_a.0.scores"]


def test_targets_that_the_network_predicts_are_compared_as_maps():
    made = case(True, [0, 0])
    values = np.float32([0.01, 60.0])  # px; 3e-5 off is half a millionth of the largest
    mine = dict.fromkeys(("train_targets.b.1.3", "train_targets.b.0"), values + np.float32(3e-5))
    made.arrays.update(dict.fromkeys(mine, values))
    lines, _ = parity._array_lines(made, mine, (), (r"train_targets\.b\.1\.\d",))
    assert {line.quantity: line.passed for line in lines} == {
        "map train_targets.b.1.3": True,
        "targets train_targets.b.0": False,
    }


def test_of_targets_only_what_the_loss_reads_is_compared():
    made = case(True, [0, 0])
    name = "train_targets.b.0.1"
    made.arrays[name] = np.float32([[1, 2], [3, 4], [0, 0]])
    readable = {name: np.array([[True], [False], [True]])}
    for row, passed in ((0, False), (1, True), (2, False)):
        mine = made.arrays[name].copy()
        mine[row, 1] += 0.01
        (line,), _ = parity._array_lines(made, {name: mine}, (), readable=readable)
        assert line.passed == passed
    assert not parity._array_lines(made, {name: mine[:2]}, (), readable=readable)[0][0].passed


def test_maps_of_training_may_be_absent_where_its_norms_are_live():
    made = case(True, [0, 0])
    made.arrays.update({name: np.zeros(3) for name in ("m_0", "train_m_0", "train_n_0")})
    mine = {"m_0": np.zeros(3)}
    lines, not_compared = parity._array_lines(made, mine, ())
    missed = [line.quantity for line in lines if not line.passed]
    assert missed == ["map train_m_0", "map train_n_0"] and not not_compared
    made.info["batch_norm_in_train"]["batch_statistics"] = 20
    lines, not_compared = parity._array_lines(made, mine, ())
    assert [line.quantity for line in lines if not line.passed] == ["map train_n_0"]
    assert not_compared == ["train_m_0"]


def test_the_total_loss_drifts_only_as_far_as_its_losses():
    info = {
        "losses": {"loss_a": 2.0, "acc": 50.0},
        "total_loss": 2.0,
        "drift": {"losses": {"loss_a": 2e-3, "acc": 0.5}},
    }
    results = types.SimpleNamespace(metrics={"loss/a": 2.0, "acc": 50.0}, total_loss=2.0)
    names = {"loss_a": "loss/a", "acc": "acc"}
    lines = parity._loss_lines(types.SimpleNamespace(info=info), names, results)
    assert [line.quantity for line in lines] == ["loss loss_a", "loss acc", "loss total"]
    assert lines[-1].tolerance == pytest.approx(10 * 2e-3 * 2.0, rel=1e-3)
