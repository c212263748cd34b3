"""Overrides on the command line, with and without a flag."""

import pytest

from ray_deltastn.cli.parser import parse


@pytest.mark.parametrize("command", ["run", "compare"])
@pytest.mark.parametrize(
    "line",
    [
        "FILE train.lr=1e-3 tune.num_samples=4 --out DIR",
        "FILE --out DIR train.lr=1e-3 tune.num_samples=4",
        "FILE train.lr=1e-3 --out DIR tune.num_samples=4",
        "--out DIR FILE train.lr=1e-3 tune.num_samples=4",
        "FILE --set train.lr=1e-3 --out DIR tune.num_samples=4",
        "FILE --set train.lr=1e-3 --set tune.num_samples=4 --out DIR",
    ],
)
def test_overrides_may_stand_anywhere_after_the_file(command, line):
    options = parse([command, *line.split()])
    assert (str(options.config), str(options.out)) == ("FILE", "DIR")
    assert options.set == ["train.lr=1e-3", "tune.num_samples=4"]


@pytest.mark.parametrize(
    "line", ["run FILE lr=1 --uot DIR", "status DIR lr=1", "schema experiment lr=1", "tasks lr=1", "init a.py b.py"]
)
def test_what_no_command_knows_is_refused(line, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(line.split())
    assert stop.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_an_option_of_the_file_with_dashes_gets_a_hint(capsys):
    with pytest.raises(SystemExit):
        parse(["run", "FILE", "--epochs", "3"])
    assert "unrecognized arguments: --epochs 3; options of the YAML file have no dashes" in capsys.readouterr().err


def test_report_takes_one_folder_or_several():
    assert parse(["report", "a"]).others == []
    assert [str(path) for path in parse(["report", "a", "b", "c", "--picture", "p.png"]).others] == ["b", "c"]
