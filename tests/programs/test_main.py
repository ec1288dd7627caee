"""The command `detlab`: its subcommands run the programs and start fast."""

import json
import os
import subprocess
import sys

import pytest

from detlab import __main__ as main_lib
from detlab import config as config_lib
from detlab import environment, errors

PROGRAMS = {name: sub.run for name, sub in main_lib.SUBCOMMANDS.items() if isinstance(sub.run, str)}

# One process, in an empty folder, runs all command lines.
SCRIPT = """
import contextlib, io, json, runpy, sys

from detlab import __main__ as main_lib


def answer(run, *words):
    sys.argv = list(words)
    output, said, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(said):
        try:
            run()
        except SystemExit as end:
            code = end.code
    return [output.getvalue(), said.getvalue(), code]


programs, lines = json.loads(sys.argv[1])
answers = {line: answer(main_lib.main, "detlab", *line.split()) for line in lines}
for module in programs:
    run = lambda: runpy.run_module(module, run_name="__main__")
    answers[module] = answer(run, module, "--help")
answers["jax"] = "jax" in sys.modules
print(json.dumps(answers))
"""
LINES = (
    *("", "-h", "--help", "trian", "--confg=x", "list", "list retina", "list retinanet_vco"),
    *("list --config.seed=1", "train", "train --confg=x", "env --config.seed=1"),
    *(f"{name} --help" for name in main_lib.SUBCOMMANDS),
)


@pytest.fixture(scope="module")
def answers(repository, tmp_path_factory):
    """{command line: [output, errors, exit status]}, and whether any imported jax."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, json.dumps([list(PROGRAMS.values()), LINES])],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_of_it_imports_jax_before_it_computes(answers):
    assert answers["jax"] is False


def test_alone_and_with_help_it_shows_subcommands_and_examples(answers):
    shown, said, code = answers[""]
    assert answers["-h"] == answers["--help"] == [shown, said, code]
    assert code == 0 and not said
    for name, subcommand in main_lib.SUBCOMMANDS.items():
        assert f"\n  {name:9} {subcommand.line}\n" in shown
        assert f"\n    detlab {name} " in shown  # an example


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_of_a_subcommand_is_that_of_its_program_but_for_usage(answers, name):
    ours, theirs = answers[f"{name} --help"], answers[PROGRAMS[name]]
    assert ours[1:] == theirs[1:] == ["", 0]
    usage, _, text = ours[0].partition("\n\n")
    their_usage, _, their_text = theirs[0].partition("\n\n")
    assert text == their_text
    assert usage.startswith(f"usage: detlab {name} [-h]")
    assert their_usage.startswith("usage: python -m ")


@pytest.mark.parametrize("name", main_lib.SUBCOMMANDS)
def test_help_of_every_subcommand_has_examples(answers, name):
    shown = answers[f"{name} --help"][0]
    module = {"train": "train", "eval": "eval", "demo": "demo"}.get(name)  # shown as modules
    assert f"\n    detlab {name}" in shown or f"\n    python -m detlab.{module} " in shown


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("trian", "detlab has no subcommand 'trian'. Did you mean train?"),
        ("--confg=x", "detlab has no subcommand '--confg=x'. Choose from: train, eval, demo,"),
        ("train", "the following arguments are required: --config"),
        ("train --confg=x", "unknown flag --confg. Did you mean --config?"),
        ("list retinanet_vco", "no shipped experiment has 'retinanet_vco' in its name. Did you"),
        ("list --config.seed=1", "detlab list takes no --config.seed; remove it."),
        ("env --config.seed=1", "--config.seed needs --config; add it."),
    ],
)
def test_a_mistake_gets_a_sentence_and_status_2(answers, line, sentence):
    shown, said, code = answers[line]
    assert not shown and code == 2
    assert said.startswith(f"error: {sentence}") and said.count("\n") == 1


def test_list_shows_a_line_an_experiment(answers):
    head, *lines = answers["list"][0].splitlines()
    assert head.split() == ["experiment", "variants", "data", "time", "memory", "figure"]
    assert [line.split()[0] for line in lines] == config_lib.shipped()
    assert answers["list retina"][0].splitlines()[1:] and all(
        "retina" in line.split()[0] for line in answers["list retina"][0].splitlines()[1:]
    )


def test_env_prints_and_writes_what_there_is(capsys, tmp_path):
    file = tmp_path / "new" / "env.json"
    words = ["--config", "retinanet_shapes", "--config.seed=3", "--json", str(file)]
    main_lib.SUBCOMMANDS["env"].run(words)
    found = json.loads(file.read_text())
    assert capsys.readouterr().out == environment.text(found) + "\n"
    config = config_lib.load("retinanet_shapes", {"seed": "3"})
    assert found["config_hash"] == environment.config_hash(config)
    with pytest.raises(errors.UserError, match="unknown key config.sed"):
        main_lib.SUBCOMMANDS["env"].run([*words, "--config.sed=3"])


@pytest.mark.slow
def test_a_program_runs_as_a_subcommand_with_processes_that_read_data(repository, tmp_path):
    words = "--config retinanet_shapes --dry_run --config.data.workers=2".split()
    words += ["--config.model.backbone_width=8", "--config.data.canvases=((64,64),)"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "detlab", "train", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "dry run: all is well" in done.stdout
