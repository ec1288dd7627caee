"""Four devices compute the same as one: losses, gradients, detections and random numbers."""

from concurrent import futures

import numpy as np
import pytest
import tiny

pytestmark = pytest.mark.slow

PROGRAM = "import sys, device_runs; device_runs.main(*sys.argv[1:])"


def selected_runs(request):
    """The runs of `device_runs` that the selected tests of this file need."""
    tests = [item for item in request.session.items if item.path == request.path]
    names = [getattr(test, "callspec", None) and test.callspec.params.get("name") for test in tests]
    own = [] if all(names) else ["training", "sampling"]
    return own + [name for name in tiny.TINY if name in names]


@pytest.fixture(scope="module")
def results_of(request, tiny_config, made_once, run_on_devices):
    """`results_of(run)` -> {number of devices: arrays} of a run of `device_runs` on 1 and on 4.

    One process per number of devices, in parallel, executes all runs.
    """

    def make(folder):
        def start(count):
            (folder / str(count)).mkdir()
            arguments = (count, folder / str(count), tiny_config, *selected_runs(request))
            run_on_devices(count, PROGRAM, *arguments, timeout=3000)

        with futures.ThreadPoolExecutor() as pool:
            list(pool.map(start, (1, 4)))

    folder = made_once("devices", make)

    def results_of(run):
        found = {}
        for count in (1, 4):
            error = folder / str(count) / f"{run}.txt"
            if error.exists():
                pytest.fail(f"on {count} devices: {error.read_text()}")
            with np.load(folder / str(count) / f"{run}.npz") as arrays:
                found[count] = dict(arrays)
        return found

    return results_of


@pytest.fixture(scope="module")
def results(results_of):
    return results_of("training")


def pairs(results, kind):
    one, four = results[1], results[4]
    assert one.keys() == four.keys()
    names = [name for name in one if name.startswith(kind)]
    assert names
    return [(name, one[name], four[name]) for name in names]


def test_losses_and_metrics_are_equal(results):
    for name, one, four in pairs(results, "metric"):
        np.testing.assert_allclose(four, one, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["grad", "state"])
def test_every_gradient_and_batch_statistic_is_equal(results, kind):
    """Relative to the norm of the leaf: sums over images differ in order."""
    for name, one, four in pairs(results, kind):
        assert np.linalg.norm(one - four) <= 1e-5 * np.linalg.norm(one) + 1e-9, name


def test_steps_in_parts_are_equal_and_the_stop_is_told(results):
    for name, one, four in pairs(results, "step"):
        np.testing.assert_allclose(four, one, rtol=1e-5, err_msg=name)


def test_detections_are_equal(results):
    for name, one, four in pairs(results, "detections"):
        np.testing.assert_allclose(four, one, rtol=1e-5, atol=1e-5, err_msg=name)
    for name, one, four in pairs(results, "bounds"):
        np.testing.assert_array_equal(four, one, err_msg=name)
        assert one.all(), "on all eight images more candidates pass than are kept"
    assert results[1]["detections valid"].any()


def test_random_numbers_are_equal_bit_by_bit(results_of):
    ((_, one, four),) = pairs(results_of("sampling"), "random")
    np.testing.assert_array_equal(one, four)
    assert len(np.unique(one)) > 0.99 * one.size


@pytest.mark.parametrize("name", tiny.TINY)
def test_a_step_and_the_detections_of_every_detector_are_equal(name, results_of):
    results = results_of(name)
    for quantity, one, four in pairs(results, "metric "):
        np.testing.assert_allclose(four, one, rtol=1e-4, atol=1e-6, err_msg=quantity)
    for kind in ("params",) if name in tiny.WITHOUT_STATE else ("params", "state"):
        for quantity, one, four in pairs(results, f"{kind} "):
            error = np.linalg.norm(one - four)
            assert error <= 1e-5 * np.linalg.norm(one) + 1e-6, quantity
    for quantity, one, four in pairs(results, "detections "):
        np.testing.assert_allclose(four, one, rtol=1e-4, atol=1e-3, err_msg=quantity)
