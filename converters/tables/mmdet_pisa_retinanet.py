"""mmdet's RetinaNet with PISA -> detector `pisa_retinanet`.

Tensors and leaves are those of RetinaNet.
"""

from detlab.converters import sources
from detlab.converters.tables import mmdet_retinanet

KIND = "an mmdet RetinaNet with PISA"
MARKS, table = mmdet_retinanet.MARKS, mmdet_retinanet.table
SOURCES = (sources.Source("mmdet", KIND, MARKS, table, "pisa_retinanet"),)
