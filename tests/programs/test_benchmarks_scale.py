"""What devices exchange is counted in compiled programs, and what follows for a network."""

import json

import pytest

from benchmarks import command, links, scale

PROGRAM = """
HloModule step, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %inner = f32[4]{0} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add
}

ENTRY %main (p: f32[2,3], q: bf16[5]) -> (f32[2,3], f32[]) {
  %p = f32[2,3]{1,0} parameter(0)
  %q = bf16[5]{0} parameter(1)
  %first = (f32[2,3]{1,0}, /*index=1*/bf16[5]{0}) all-reduce(%p, %q), to_apply=%add
  %part = f32[2,3]{1,0} get-tuple-element(%first), index=0
  %scaled = f32[2,3]{1,0} fusion(%part), kind=kLoop, calls=%add
  %second = f32[2,3]{1,0} all-reduce-start(%scaled), to_apply=%add
  %done = f32[2,3]{1,0} all-reduce-done(%second)
  %beside = f32[] all-reduce(%p), to_apply=%add
  %all = pred[16]{0} all-gather(%q), dimensions={0}
  ROOT %out = (f32[2,3]{1,0}, f32[]) tuple(%done, %beside)
}
"""

# Parameters of 3 x 5 and 5 and a batch of eight, the sum of whose loss is exchanged with the
# gradients; run on eight devices.
REAL = """
import json
import jax, jax.numpy as jnp, numpy as np
from benchmarks import scale
from detlab import sharding

mesh = sharding.make_mesh()
weights = {"kernel": np.ones((3, 5), np.float32), "bias": np.ones(5, np.float32)}
weights = jax.device_put(weights, sharding.replicated(mesh))
images = sharding.put_batch(np.ones((8, 3), np.float32), mesh)
loss = lambda w, x: jnp.square(x @ w["kernel"] + w["bias"]).sum()
step = jax.jit(jax.value_and_grad(loss), out_shardings=sharding.replicated(mesh))
print(json.dumps(scale.exchanged(step.lower(weights, images).compile().as_text())))
"""


def test_exchanges_are_counted_with_their_bytes_and_the_longest_chain():
    found = scale.exchanged(PROGRAM)
    assert found["kinds"] == {
        # 16 in the loop; 24 + 10 together; 24, which waits for them; 4.
        "all-reduce": {"count": 4, "bytes": 16 + 34 + 24 + 4},
        "all-gather": {"count": 1, "bytes": 16},
    }
    assert found["rounds"] == 2 and found["inside"] == 1
    assert scale.exchanged("ENTRY %main () -> f32[] {\n}") == {
        "kinds": {},
        "rounds": 0,
        "inside": 0,
    }


def test_a_compiled_program_exchanges_its_gradients_and_the_sum_of_the_loss(run_on_devices):
    found = json.loads(run_on_devices(8, REAL))
    assert set(found["kinds"]) == {"all-reduce"}
    assert found["kinds"]["all-reduce"]["bytes"] == 4 * (3 * 5 + 5 + 1)
    assert found["rounds"] == 1 and found["inside"] == 0


def test_the_arithmetic_is_that_of_a_ring():
    # 100 MB, 8 devices, 450 GB/s: 7/8 of them twice.
    assert links.ring_s(100e6, 8, 450e9) == pytest.approx(2 * 87.5e6 / 450e9)
    # 1 TFLOP at 40 % of 989 TFLOP/s
    assert links.image_s(1e12, links.CHIPS["H200"]) == pytest.approx(1 / 395.6)
    assert links.cores(500.0, 8.0) == 4.0
    connected = {(link.chip, mesh) for link in links.LINKS for mesh in link.meshes}
    assert connected == {(chip, mesh) for chip in links.CHIPS for mesh in scale.MESHES}


@pytest.mark.parametrize("name", scale.EXPERIMENTS)
def test_the_recorded_step_exchanges_gradients_and_little_else_on_every_mesh(name, repository):
    """No activation moves, and the bytes do not grow with the devices."""
    rows = command.rows_of(repository / "benchmarks" / "results" / "scale.json")
    of_meshes = [rows[f"{name}/{devices}"] for devices in scale.MESHES]
    for row in of_meshes:
        assert set(row["kinds"]) == {"all-reduce"} and row["inside"] == 0
        total = row["kinds"]["all-reduce"]["bytes"]
        assert row["trained_bytes"] <= total < 1.01 * row["trained_bytes"]
    assert all(row["kinds"] == of_meshes[0]["kinds"] for row in of_meshes)


@pytest.mark.slow
def test_a_step_and_an_image_are_counted_in_processes_of_their_own(tmp_path):
    output = tmp_path / "scale.json"
    small = "depth=18,backbone_width=8,neck_width=16,head_width=16".split(",")
    only = ["--only", "retinanet/8", "--only", "retinanet/image"]
    scale.main([*only, "--output", str(output), *(f"--config.model.{field}" for field in small)])
    rows = json.loads(output.read_text())["rows"]
    step = rows["retinanet/8"]
    assert set(step["kinds"]) == {"all-reduce"} and step["devices"] == 8
    assert step["kinds"]["all-reduce"]["bytes"] >= step["trained_bytes"] > 1e5
    # 100 boxes, scores, labels and marks; two bounds at most; what belongs to the row.
    assert 100 * (16 + 4 + 4 + 1) < rows["retinanet/image"]["gathered_bytes"] < 2600
    assert rows["retinanet/image"]["flop"] > 1e9
