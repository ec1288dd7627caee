"""The initial state of a run."""

import jax
import numpy as np

from detlab.run import state as state_lib


def test_initial_values_are_compiled_quickly_and_have_the_same_bits(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # the options for users, not those of the tests
    quick = state_lib.quick_options()
    full = {name: 3 for name in quick}
    assert quick != full

    def compute(key):
        keys = jax.random.split(key, 3)
        initializers = jax.nn.initializers
        return (
            initializers.variance_scaling(2.0, "fan_out", "normal")(keys[0], (3, 3, 16, 24)),
            initializers.lecun_normal()(keys[1], (3, 3, 16, 24)),
            initializers.uniform(0.1)(keys[2], (7, 33)),
        )

    expected, found = (
        jax.jit(compute, compiler_options=options)(jax.random.key(3)) for options in (full, quick)
    )
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), strict=True)


def test_a_level_in_the_flags_is_kept(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert state_lib.quick_options() is None
