"""Profiles: which steps are traced, and where the files are written."""

import errno

import jax
import jax.numpy as jnp
import pytest

from detlab import errors
from detlab.run import profile


@pytest.fixture
def traced(tmp_path, monkeypatch):
    """`traced(steps, first, total)` -> the steps that ran while a trace was taken."""
    running = []
    monkeypatch.setattr(jax.profiler, "start_trace", running.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", running.clear)

    def run(steps, first, total):
        found = []
        with profile.Profiler(tmp_path, steps, first) as profiler:
            for step in range(first + 1, total + 1):
                profiler.step(step, jnp.zeros(()))
                found += [step] if running else []
        assert not running
        return found

    return run


def test_the_first_step_which_compiles_is_left_out(traced):
    assert traced(2, first=0, total=6) == [2, 3]
    assert traced(3, first=10, total=20) == [12, 13, 14]  # of a resumed run


def test_a_trace_ends_with_the_run(traced):
    assert traced(9, first=0, total=4) == [2, 3, 4]


def test_no_step_is_traced_unless_asked_for(traced, capsys):
    assert traced(0, first=0, total=4) == []
    assert not capsys.readouterr().out


def test_a_start_without_a_second_step_says_that_nothing_was_traced(traced, capsys):
    assert traced(3, first=0, total=1) == []
    assert "profile:      none" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    def disk_full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", disk_full)
    with pytest.raises(errors.UserError, match="the profile into .*: No space left on device; fix"):
        with profile.Profiler(tmp_path, 1, first=0) as profiler:
            profiler.step(2, jnp.zeros(()))


def test_the_files_are_those_of_the_viewers(tmp_path, capsys):
    with profile.Profiler(tmp_path, 1, first=0) as profiler:
        for step in (1, 2, 3):
            profiler.step(step, jnp.zeros(()))
            (jnp.ones(3) + step).block_until_ready()
    assert list(tmp_path.rglob("*.trace.json.gz")) and list(tmp_path.rglob("*.xplane.pb"))
    assert str(tmp_path) in capsys.readouterr().out
