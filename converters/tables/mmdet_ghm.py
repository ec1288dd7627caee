"""mmdet's RetinaNet with the losses of GHM -> detector `ghm`: RetinaNet's table and bin counts."""

from detlab.converters import mapping, sources
from detlab.converters.tables import mmdet_retinanet


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `torchvision_resnet.rules`."""
    base = mmdet_retinanet.table(bgr)
    counts = [
        mapping.Rule(rf"bbox_head\.loss_{theirs}\.acc_sum", f"loss_state/{ours}_counts")
        for theirs, ours in (("cls", "cls"), ("bbox", "box"))
    ]
    edges = mapping.Dropped(r"bbox_head\.loss_\w+\.edges", "follow from the number of bins")
    return base._replace(
        name="mmdet RetinaNet with GHM",
        subtrees=(*base.subtrees, "loss_state"),
        rules=(*base.rules, *counts),
        dropped=(*base.dropped, edges),
    )


MARKS = (*mmdet_retinanet.MARKS, "bbox_head.loss_cls.acc_sum")
SOURCES = (
    sources.Source("mmdet", "an mmdet RetinaNet with the losses of GHM", MARKS, table, "ghm"),
)
