"""What is said of the package in several files is the same: version, dependencies, licence."""

import re
import sys
from pathlib import Path

import pytest
import yaml

import ray_deltastn as rd

ROOT = Path(__file__).parents[1]
#: Names of conda-forge that differ from those of PyPI.
CONDA = {"torch": "pytorch", "ray[tune]": "ray-tune", "matplotlib": "matplotlib-base"}


@pytest.fixture(scope="module")
def project():
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 does not read TOML")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_version_is_in_one_place_and_the_citation_agrees(project, citation):
    assert citation["version"] == rd.__version__
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ray_deltastn._version.__version__"}


def test_the_changelog_has_the_release_and_its_date(citation):
    releases = re.findall(r"^## \[([^\]]+)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == ("Unreleased", "")
    assert releases[1] == (rd.__version__, str(citation["date-released"]))
    assert [date for _, date in releases[1:]] == sorted((date for _, date in releases[1:]), reverse=True)


def test_authors_and_licence_are_those_of_the_citation(project, citation):
    assert [one["name"] for one in project["project"]["authors"]] == [one["name"] for one in citation["authors"]]
    assert project["project"]["license"] == citation["license"] == "MIT"


def test_the_conda_recipe_has_the_dependencies_of_the_package(project):
    recipe = (ROOT / "docs" / "conda" / "meta.yaml").read_text()
    run = re.search(r"^  run:\n((?:    - .*\n)+)", recipe, re.MULTILINE)[1]
    found = {tuple(line.removeprefix("    - ").split(" ")) for line in run.splitlines()}
    wanted = {("python", project["project"]["requires-python"])}
    for text in project["project"]["dependencies"]:
        name, rule = re.fullmatch(r"([\w\[\]-]+)([><=].*)", text).groups()
        wanted.add((CONDA.get(name, name), rule))
    assert found == wanted
    pattern = re.search(r"regex_pattern='(.*?)'", recipe)[1]
    assert re.search(pattern, (ROOT / "ray_deltastn" / "_version.py").read_text())[1] == rd.__version__


def test_the_package_data_exist(project):
    data = project["tool"]["setuptools"]["package-data"]["ray_deltastn"]
    assert all(any((ROOT / "ray_deltastn").glob(pattern)) for pattern in data)
    code = {p for p in (ROOT / "ray_deltastn").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert code == {path for pattern in data for path in (ROOT / "ray_deltastn").glob(pattern)}
