"""What the pages of the documentation show exists: commands and their options, columns, names, files, YAML."""

import argparse
import importlib
import re
import shlex
import warnings

import pytest
import torch.distributed.run
import torch.nn.functional as F
import yaml
from torch import nn

import ray_deltastn as rd
from ray_deltastn.cli.parser import parse, parser
from ray_deltastn.compare.plan import CompareConfig
from ray_deltastn.tasks.digits import digits
from ray_deltastn.tune.config import ExperimentConfig
from tests.pages import PAGES, ROOT, blocks, text

#: Page → the tests that run its Python blocks.
RUN_BY = {
    "README.md": "tests/test_readme.py",
    "docs/start.md": "tests/test_readme.py",
    "docs/reuse.md": "tests/test_readme.py",
    "docs/model.md": "tests/test_readme.py",
    "docs/search.md": "tests/test_readme.py",
    "docs/models.md": "tests/test_models_page.py",
    "docs/loggers.md": "tests/test_loggers.py",
    "docs/language.md": "tests/test_language_page.py",
    "docs/workers.md": "tests/training/test_workers.py",
    "docs/lightning.md": "tests/integrations/test_lightning.py",
    "docs/transformers.md": "tests/integrations/test_transformers.py",
}
#: Languages of blocks: Python, which is run, commands, which are parsed, YAML, which is read, and what is no code.
KINDS = {"python", "console", "yaml", "text"}
#: A record that a page tells a reader to make.
TO_MAKE = {"benchmarks/records/gpu.json"}
_OPTIONAL = text("pyproject.toml").partition("[project.optional-dependencies]")[2].partition("\n[")[0]
EXTRAS = re.findall(r"^(\w+) = \[", _OPTIONAL, re.MULTILINE)


def commands():
    """The commands of all pages, one by one, without comments."""
    found = []
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.text.replace("\\\n", " ").splitlines():
                for command in line.split(" && "):
                    words = shlex.split(command, comments=True)
                    found.append(pytest.param(page, words, id=f"{page}: {' '.join(words)[:60]}"))
    return found


def test_every_page_with_python_is_run_by_a_test():
    assert {page for page in PAGES if blocks(page)} == set(RUN_BY)
    for page, test in RUN_BY.items():
        assert page.removeprefix("docs/") in text(test)


def test_every_block_has_a_language_that_is_checked():
    for page in PAGES:
        fences = re.findall(r"^ *```(.*)$", text(page), re.MULTILINE)
        assert {fence for fence in fences[::2]} <= KINDS, page
        assert not any(fences[1::2]), page


@pytest.mark.parametrize(("page", "words"), commands())
def test_a_command_of_a_page_is_understood(page, words, monkeypatch):
    program, *rest = (word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word))
    if program == "ray-deltastn":
        options = parse(rest)
        if "config" in options:  # reading it checks the overrides, too
            kind = CompareConfig if options.command == "compare" else ExperimentConfig
            kind.read(ROOT / options.config, options.set)
    elif program == "python" and rest[1].startswith("benchmarks."):
        _parse_benchmark(rest[1], rest[2:], monkeypatch)
    elif program == "python":
        assert rest[:2] == ["-m", "pytest"]
        assert all((ROOT / word).exists() for word in rest[2:] if not word.startswith("-"))
    elif program == "torchrun":
        launched = torch.distributed.run.get_args_parser().parse_args(rest)
        assert launched.training_script == "train.py"  # the first block of the page
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", text("Makefile"), re.MULTILINE)
    elif program.removeprefix(".venv/bin/") == "pip":
        for extra in re.findall(r"\[(\w+)\]", " ".join(rest)):
            assert extra in EXTRAS
    else:
        assert program in ("git", "cd", ".", "export", "torchrun", ".venv/bin/pre-commit")


class _ParsedError(Exception):
    pass


def _parse_benchmark(name, arguments, monkeypatch):
    """Let a benchmark read its options, and stop it there."""
    own = argparse.ArgumentParser.parse_args

    def parse_args(*positional, **named):
        own(*positional, **named)
        raise _ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr("sys.argv", [name])
    module = importlib.import_module(name)
    module = importlib.import_module(name + ".__main__") if hasattr(module, "__path__") else module
    with pytest.raises(_ParsedError):
        module.main(arguments)


def test_the_page_of_the_command_has_all_commands_and_options():
    page = text("docs/reference/command.md")
    own = parser()
    (commands,) = (action.choices for action in own._actions if isinstance(action, argparse._SubParsersAction))
    options = {
        (name, option)
        for name, command in commands.items()
        for action in command._actions
        for option in action.option_strings
        if option.startswith("--") and option != "--help"
    }
    for name in commands:
        assert f"`ray-deltastn {name}" in page
    shown = re.findall(r"^\| `(--[a-z]+)", page, re.MULTILINE)
    assert sorted(shown) == sorted({option for _, option in options})


def test_the_page_about_results_names_every_column_of_a_report():
    table = text("docs/start.md").partition("| column | meaning |")[2].partition("\n\n")[0]
    named = [
        name
        for row in table.splitlines()
        for name in re.findall("`([^`]+)`", row.partition("| ")[2].partition(" |")[0])
    ]
    train, valid, test = digits()
    space = rd.HyperSpace(dropout=rd.Bounded(0.1))
    network = nn.Sequential(nn.Flatten(), rd.Dropout("dropout"), nn.Linear(64, 10))
    metrics = {"own": lambda output, target: output.mean(1)}
    task = rd.Task(space, network, F.cross_entropy, train, valid, test, metrics=metrics)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rd.RunWarning)
        report = rd.SelfTuner(task, epochs=1, batch_size=500).step()
    patterns = [re.escape(name).replace("NAME", ".+").replace("…", ".+") for name in named]
    unnamed = [key for key in report if not any(re.fullmatch(pattern, key) for pattern in patterns)]
    assert not unnamed
    of_trials = {"trial_id", "config/NAME"}
    lost = [name for name, p in zip(named, patterns, strict=True) if not any(re.fullmatch(p, key) for key in report)]
    assert set(lost) == of_trials


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_yaml_of_a_page_is_an_experiment(page, tmp_path):
    for block in blocks(page, "yaml"):
        path = tmp_path / "experiment.yaml"
        path.write_text(block.text)
        given = yaml.safe_load(block.text)
        if "task" not in given:  # a part of a file
            path.write_text(f"task: digits-mlp\n{block.text}")
        assert ExperimentConfig.read(path).task == given.get("task", "digits-mlp")


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_package_on_a_page_exist(page):
    names = re.findall(r"\brd\.(?!NAME)([A-Za-z_][\w.]*\w)", text(page))
    names += re.findall(r"`ray_deltastn\.(?!NAME)([\w.]*[a-z])\b", text(page))
    for name in names:
        found = rd
        for part in name.split("."):
            found = _part(found, part)


def _part(owner, name):
    """An attribute, or a module that is imported when it is first used."""
    try:
        return getattr(owner, name)
    except AttributeError:
        return importlib.import_module(f"{owner.__name__}.{name}")


@pytest.mark.parametrize("page", PAGES)
def test_files_of_the_repository_that_a_page_names_exist(page):
    made = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}  # by commands, such as results/
    top = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir() and path.name not in made)
    for name in re.findall(rf"`((?:{top}|response|regularizers|tune|training|kinds)/[\w./-]*)`", text(page)):
        places = [ROOT, ROOT / "ray_deltastn", ROOT / "ray_deltastn" / "response"]
        assert name in TO_MAKE or any((place / name).exists() for place in places), name
