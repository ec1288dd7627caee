"""mmdet's Dynamic R-CNN -> detector `dynamic_rcnn`.

Tensors and leaves are those of Faster R-CNN; a file has no records of the training.
"""

from detlab.converters import sources
from detlab.converters.tables import mmdet_faster_rcnn

KIND = "an mmdet Dynamic R-CNN"
MARKS, table = mmdet_faster_rcnn.MARKS, mmdet_faster_rcnn.table
SOURCES = (sources.Source("mmdet", KIND, MARKS, table, "dynamic_rcnn"),)
