"""Placement on four devices, in a separate process: jax fixes their number when it starts."""

import jax
import numpy as np

from detlab import sharding

PROGRAM = """
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from detlab import sharding

assert jax.device_count() == 4
mesh = sharding.make_mesh()
assert dict(mesh.shape) == {"data": 4}
everywhere = sharding.replicated(mesh)

# put_batch: a tree of host arrays; the images are divided in order.
images = np.arange(8 * 3, dtype=np.uint8).reshape(8, 3)
batch = sharding.put_batch({"images": images, "real": np.arange(8) < 7, "none": None}, mesh)
assert batch["none"] is None
assert batch["images"].dtype == jnp.uint8 and batch["real"].dtype == bool
assert batch["images"].sharding.spec == PartitionSpec("data")
np.testing.assert_array_equal(batch["images"], images)
for i, shard in enumerate(sorted(batch["images"].addressable_shards, key=lambda s: s.device.id)):
    np.testing.assert_array_equal(shard.data, images[2 * i : 2 * i + 2])

# replicated: the whole array on every device.
weight = jax.device_put(jnp.float32(2.0), everywhere)
assert len(weight.addressable_shards) == 4 and weight.is_fully_replicated

# per_image: loops whose length depends on the image, without communication between devices.
limits = np.array([1, 50, 3, 700, 0, 9, 1000, 2], np.float32)


def doublings(weight, limits):
    def one_image(limit):
        return lax.while_loop(lambda x: x < limit, lambda x: x * weight, 1.0)

    powers = jax.vmap(one_image)(limits)
    total = lax.fori_loop(0, 3, lambda i, t: t + limits.sum(), 0.0)
    return {"power": powers, "local": jnp.broadcast_to(total, limits.shape)}


placed = sharding.put_batch(limits, mesh)
apart = jax.jit(sharding.per_image(doublings, mesh, constants=1))
out = apart(weight, placed)
np.testing.assert_array_equal(out["power"], [1, 64, 4, 1024, 1, 16, 1024, 2])
assert out["power"].sharding.spec == PartitionSpec("data")
# The function sees only its device's two images as its batch.
np.testing.assert_array_equal(out["local"], 3 * limits.reshape(4, 2).sum(1).repeat(2))


def collectives(function):
    text = jax.jit(function).lower(weight, placed).compile().as_text()
    return text.count("all-reduce") + text.count("all-gather") + text.count("collective-permute")


assert collectives(sharding.per_image(doublings, mesh, constants=1)) == 0
assert collectives(doublings) > 0  # the plain call would wait for the slowest image on all devices

# per_device: the same inside a larger program, with a mesh set; gradients pass through it.
def loss_of_doublings(weight, limits):
    powers = sharding.per_device(lambda limits: doublings(2.0, limits)["power"] * limits)(limits)
    return (weight * powers).sum()


outside = jax.jit(jax.value_and_grad(loss_of_doublings, (0, 1)))(weight, limits)
assert sharding.per_device(len) is len  # there is no mesh
with jax.set_mesh(mesh):
    assert sharding.per_device(len) is not len
    inside = jax.jit(jax.value_and_grad(loss_of_doublings, (0, 1)))
    text = inside.lower(weight, placed).compile().as_text()
    for a, b in zip(jax.tree.leaves(inside(weight, placed)), jax.tree.leaves(outside)):
        np.testing.assert_allclose(a, b, rtol=1e-6)
entry = text.partition("ENTRY ")[2]
assert text.count("all-reduce(") == entry.count("all-reduce(") > 0  # of the sum, not of the loop


# A loss of the global batch does not depend on the number of devices.
loss = jax.jit(jax.value_and_grad(lambda w, x: jnp.square(w * x - x.mean()).mean()))
for a, b in zip(loss(weight, placed), loss(2.0, limits)):
    np.testing.assert_allclose(a, b, rtol=1e-6)
print("fine")
"""


def test_batches_and_loops_are_divided_over_four_devices(run_on_devices):
    assert run_on_devices(4, PROGRAM).endswith("fine\n")


def test_one_device_needs_no_other_program():
    mesh = sharding.make_mesh()
    x = np.arange(2.0 * mesh.size, dtype=np.float32)
    placed = sharding.put_batch(x, mesh)
    double = sharding.per_image(lambda k, x: k * x, mesh, constants=1)
    weight = jax.device_put(np.float32(2.0), sharding.replicated(mesh))
    np.testing.assert_array_equal(jax.jit(double)(weight, placed), 2 * x)
