"""How the parity command handles cases that it cannot run or that are wrong; no compiling."""

import json

import parity_runs
import pytest

from benchmarks.parity import cases, mmdet, references
from detlab import errors


def other_model(info):
    info["model_cfg"]["bbox_head"]["loss_cls"]["type"] = "GHMC"


def test_a_case_without_a_model_is_listed_and_fails_when_it_was_asked_for(fixtures, capsys):
    folder = fixtures(other_model)
    for flags, status in (((), 0), (("--case", parity_runs.CASE), 1), (("--all",), 1)):
        run = parity_runs.run(capsys, folder, *flags)
        assert run.status == status
        assert f"missing  {parity_runs.CASE}: no model for mmdet 3.3.0" in run.text


def test_no_recorded_case_is_known_to_two_runners_or_adapters(shared_dir):
    for info in cases.find(shared_dir / "parity").values():
        references.of(info)  # raises if one is


def test_a_case_that_two_adapters_know_is_one_sentence(fixtures, monkeypatch, capsys):
    folder = fixtures(lambda info: None)
    monkeypatch.setattr(mmdet, "ADAPTERS", 2 * mmdet.ADAPTERS)
    with pytest.raises(
        errors.UserError, match="fits the adapters of retinanet and retinanet; add `parts`"
    ):
        parity_runs.run(capsys, folder)


def test_published_weights_are_looked_for_in_their_folder(fixtures, tmp_path, capsys):
    folder = fixtures(other_model)
    (folder / "yolo").mkdir()
    (folder / "yolo" / "tiny.json").write_text(json.dumps({"weights": "tiny.weights"}))
    (folder / "figures.json").write_text("[]")  # not a case
    weights = tmp_path / "published"
    weights.mkdir()
    run = parity_runs.run(capsys, folder, "--weights", str(weights))
    assert "yolo/tiny: no model for published weights" in run.text
    assert f"tiny.weights is not in {weights}" in run.text
    (weights / "tiny.weights").touch()
    run = parity_runs.run(capsys, folder, "--weights", str(weights))
    assert f"tiny.weights is in {weights}" in run.text
    assert "2 cases: 0 passed, 0 failed, 2 missing" in run.text


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
