"""What devices exchange is counted in compiled programs, and what follows for a network."""

import pytest

from benchmarks import accelerators, command, hlo, scale, scale_tables
from detlab import errors

PROGRAM = """
HloModule step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%part (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %once = f32[4]{0} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %twice = f32[4]{0} all-reduce(%once), replica_groups=[1,8]<=[8], to_apply=%add
}

ENTRY %main (p: f32[2,3], q: f32[4]) -> (f32[2,3], f32[4]) {
  %p = f32[2,3]{1,0} parameter(0)
  %q = f32[4]{0} parameter(1)
  %first = f32[2,3]{1,0} all-reduce(%p), to_apply=%add
  %scaled = f32[2,3]{1,0} negate(%first)
  %second = f32[2,3]{1,0} all-reduce-start(%scaled), to_apply=%add
  %done = f32[2,3]{1,0} all-reduce-done(%second)
  %beside = f32[2,3]{1,0} all-reduce(%p), to_apply=%add
  %called = f32[4]{0} call(%q), to_apply=%part
  %both = f32[4]{0} fusion(%called, %beside), kind=kLoop, calls=%add
  %third = f32[4]{0} all-reduce(%both), to_apply=%add
  ROOT %out = (f32[2,3]{1,0}, f32[4]{0}) tuple(%done, %third)
}
"""


def test_rounds_are_the_longest_chain_of_exchanges_also_through_calls():
    program, kinds = hlo.parse(PROGRAM), {"all-reduce"}
    assert hlo.exchanges(program)["all-reduce"]["count"] == 6
    assert scale.rounds(program, "part", kinds) == 2
    assert scale.rounds(program, program.entry, kinds) == 3  # two of the call, then `third`
    assert scale.rounds(program, program.entry, {"all-gather"}) == 0
    without = hlo.parse(PROGRAM.replace("call(%q), to_apply=%part", "negate(%q)"))
    assert scale.rounds(without, without.entry, kinds) == 2
    assert scale.rounds(program, "add", kinds) == 0


def test_the_arithmetic_is_that_of_a_ring():
    # 100 MB, 8 devices, 450 GB/s: 7/8 of them twice.
    assert scale_tables.ring_s(100e6, 8, 450e9) == pytest.approx(2 * 87.5e6 / 450e9)
    # 1 TFLOP at 40 % of 989 TFLOP/s
    assert scale_tables.image_s(1e12, scale_tables.CHIPS["H200"]) == pytest.approx(1 / 395.6)
    assert scale_tables.cores(500.0, 8.0) == 4.0
    links = scale_tables.LINKS
    connected = {(link.chip, mesh) for link in links for mesh in link.meshes}
    assert connected == {(chip, mesh) for chip in scale_tables.CHIPS for mesh in scale.MESHES}


def step(devices, total):
    found = {"all-reduce": {"count": 3, "bytes": total, "in_loops": 0}}
    return {"devices": devices, "trained_bytes": 40e6, "exchanges": found, "rounds": 2}


ROWS = {
    "retinanet/64": step(64, 50e6),
    "retinanet/8": step(8, 45e6),
    "retinanet/256": step(256, 50e6),
    "retinanet/8/bfloat16": step(8, 20e6),
    "retinanet/image": {"flop": 0.3956e12, "gathered_bytes": 2500},
    "faster_rcnn/image": {"flop": 0.3956e12, "gathered_bytes": 2500},
    "yolov5l/image": {"flop": 0.1978e12, "gathered_bytes": 7500},
    "scoring": {"images": 5000},
}


def test_the_tables_follow_from_bytes_and_operations():
    lines = scale_tables.exchanged(ROWS).splitlines()
    assert lines[2] == "| retinanet | float32 | 8 | 40.00 | 45.00 | 3 all-reduce | 2 |"
    assert [line.split(" | ")[2] for line in lines[2:]] == ["8", "64", "256", "8"]
    assert lines[5] == "| retinanet | bfloat16 | 8 | 40.00 | 20.00 | 3 all-reduce | 2 |"
    # An image takes 1 ms on an H200; 50 MB over 400 GB/s 0.246 and 0.249, over 50 eight times that.
    by_link = {line.split(" | ")[1]: line for line in scale_tables.network(ROWS).splitlines()[2:]}
    assert by_link["NVLink 4 (H200)"].endswith("| 0.17 |  |  | 1.00 | 1 |")
    assert by_link["InfiniBand NDR, 8 a host (H200)"].endswith("|  | 0.25 | 0.25 | 1.00 | 1 |")
    assert by_link["InfiniBand NDR, 1 a host (H200)"].endswith("|  | 1.97 | 1.99 | 1.00 | 2 |")
    assert scale_tables.gathered(ROWS).splitlines()[2] == "| retinanet | 2500 | 0.64 | 12.5 |"


def test_cores_and_bytes_of_reading_follow_from_what_a_gpu_takes():
    measured = {name: {"measured": [{"cpu_ms": 8.0}]} for name in ("1x/coco", "yolov5/coco")}
    loader = {"rows": measured, "data": {"mean_kib": 100}}
    lines = scale_tables.reading(ROWS, loader).splitlines()
    # 1000 images/s of 8 ms: 8 cores; eight GPUs read 8000 x 102400 bytes a second.
    assert lines[2] == "| retinanet | `1x/coco` | 1000 | 8.0 | 8.0 | 64 | 819 | 210 |"
    # Twice as many images, each of four files.
    assert lines[4] == "| yolov5l | `yolov5/coco` | 2000 | 8.0 | 16.0 | 128 | 6554 | 1678 |"


@pytest.mark.parametrize("name", scale.EXPERIMENTS)
def test_the_recorded_step_exchanges_gradients_and_little_else_on_every_mesh(name, repository):
    """No activation moves, and the bytes do not grow with the devices."""
    rows = command.rows_of(repository / "benchmarks" / "results" / "scale.json")
    of_meshes = [rows[f"{name}/{devices}"] for devices in scale.MESHES]
    for row in of_meshes:
        assert set(row["exchanges"]) == {"all-reduce"}
        assert row["exchanges"]["all-reduce"]["in_loops"] == 0
        total = scale_tables.summed(row)
        assert row["trained_bytes"] <= total < 1.01 * row["trained_bytes"]
    assert len({scale_tables.summed(row) for row in of_meshes}) == 1
    half = rows[f"{name}/8/bfloat16"]
    assert set(half["exchanges"]) == {"all-reduce"}
    assert 0.5 * half["trained_bytes"] < scale_tables.summed(half) < half["trained_bytes"]


def test_what_compiles_for_a_gpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(accelerators, "_installed", lambda *_: False)
    with pytest.raises(errors.UserError, match="pip install --no-deps --target"):
        scale.row("retinanet/8", {})


@pytest.mark.slow
def test_the_operations_and_the_detections_of_an_image_are_counted():
    small = dict(depth=18, backbone_width=8, neck_width=16, head_width=16)
    row = scale.row("retinanet/image", {f"model.{k}": str(v) for k, v in small.items()})
    # 100 boxes, scores, labels and marks; one bound; what belongs to the row.
    assert row["gathered_bytes"] == 100 * (16 + 4 + 4 + 1) + 1 + (4 + 16 + 1 + 4 + 1)
    assert row["canvas"] == (800, 1344)
    wide = scale.row(
        "retinanet/image",
        {"model.head_width": "32", "model.depth": "18"}
        | {"model.backbone_width": "8", "model.neck_width": "16"},
    )
    assert wide["flop"] > row["flop"] > 1e9
