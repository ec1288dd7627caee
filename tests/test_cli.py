"""Command lines: splitting flags from overrides, and one error sentence per mistake."""

import argparse

import pytest

from detlab import cli, errors


def test_command_lines_are_split_into_flags_and_overrides():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--workdir")
    args, overrides = cli.parse(
        [
            "--config.optim.lr=0.1",
            "--config",
            "x.py",
            "--config.optim.name",
            "adamw",
            "--workdir=run",
            "--config.optim.milestones=(1,)",
            "--config.a=b=c",
        ],
        parser,
    )
    assert (args.config, args.workdir) == ("x.py", "run")
    assert overrides == {
        "optim.lr": "0.1",
        "optim.name": "adamw",
        "optim.milestones": "(1,)",
        "a": "b=c",
    }


def test_an_override_at_the_end_of_the_line_needs_a_value():
    with pytest.raises(errors.UserError, match="--config.optim.lr needs a value"):
        cli.parse(["--config.optim.lr"], argparse.ArgumentParser())


def flags():
    parser = argparse.ArgumentParser(prog="detlab.program")
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir")
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--top_k", type=int, default=100)
    return parser


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--confg.optim.lr=1"], "unknown flag --confg.optim.lr. Did you mean --config.optim.lr?"),
        (["--confg", "x.py"], "unknown flag --confg. Did you mean --config?"),
        (["--config", "x.py", "--dryrun"], "unknown flag --dryrun. Did you mean --dry_run?"),
        (["--config", "x.py", "--dry-run"], "unknown flag --dry-run. Did you mean --dry_run?"),
        (["--config", "x.py", "--work", "run"], "unknown flag --work. Did you mean --workdir?"),
        (["--config", "x.py", "--zzz=1"], "unknown flag --zzz. --help lists the flags."),
        (["--workdir", "run"], "the following arguments are required: --config; --help lists"),
        (["--config", "x.py", "--top_k=few"], "argument --top_k: invalid int value: 'few'; --help"),
        (["--config", "x.py", "more"], "unrecognized arguments: more; --help lists the flags."),
        (["--config"], "argument --config: expected one argument; --help lists the flags."),
    ],
)
def test_a_flag_that_the_program_lacks_is_refused_with_the_nearest(words, sentence):
    with pytest.raises(errors.UserError) as caught:
        cli.parse(words, flags())
    assert str(caught.value).startswith(sentence)
