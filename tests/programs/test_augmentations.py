"""`benchmarks.augmentations` draws its contact sheets."""

import cv2
import pytest

from benchmarks import augmentations


def test_each_transform_gets_a_sheet_and_all_share_one(tmp_path):
    augmentations.main(["--output", str(tmp_path), "--seeds", "5"])
    assert len(list(tmp_path.glob("*.png"))) == len(augmentations.SHEETS)
    height, width = cv2.imread(str(tmp_path / "augmentations.jpg")).shape[:2]
    assert height > 120 * len(augmentations.SHEETS) and width > 6 * 160


@pytest.mark.parametrize("arguments", [["--images", "folder"], ["--seeds", "4"]])
def test_arguments_that_do_not_fit_together_are_refused(tmp_path, arguments):
    with pytest.raises(SystemExit):
        augmentations.main(["--output", str(tmp_path), *arguments])
