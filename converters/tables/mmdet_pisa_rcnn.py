"""mmdet's Faster R-CNN with PISA -> detector `pisa_rcnn`.

Tensors and leaves are those of Faster R-CNN.
"""

from detlab.converters import sources
from detlab.converters.tables import mmdet_faster_rcnn

KIND = "an mmdet Faster R-CNN with PISA"
MARKS, table = mmdet_faster_rcnn.MARKS, mmdet_faster_rcnn.table
SOURCES = (sources.Source("mmdet", KIND, MARKS, table, "pisa_rcnn"),)
