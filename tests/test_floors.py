"""Imports point down only, floors 0 to 4 work without Ray, and the README's examples run."""

import ast
import math
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ray_deltastn as rd
from ray_deltastn.methods import METHODS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ray_deltastn"
README = (ROOT / "README.md").read_text()

#: Module or folder → floor. Floor 3 is the training loop and its parts.
FLOORS = {
    "__main__": 6,
    "_version": 0,
    "domains": 0,
    "space": 0,
    "response": 1,
    "regularizers": 1,
    "methods": 2,
    "algorithm": 3,
    "checks": 3,
    "data": 3,
    "evaluation": 3,
    "fused_sgd": 3,
    "graphs": 3,
    "health": 3,
    "optimizers": 3,
    "random_state": 3,
    "rules": 3,
    "settings": 3,
    "state": 3,
    "tally": 3,
    "tape": 3,
    "task": 3,
    "training": 3,
    "tasks": 4,
    "tune": 5,
    "contact_sheet": 6,
    "page": 6,
    "report": 6,
    "cli": 6,
    "compare": 6,
}
NEEDS_RAY = 5


def modules():
    """Dotted module name → its file; a package's name is its folder's."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
EVERY = pytest.mark.parametrize("module", MODULES)


def part(module):
    """Name of the module or folder under the package that a module belongs to; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes(tree, inside_functions):
    """All nodes but those that only a type checker sees, and, unless asked for, those inside functions."""
    for child in ast.iter_child_nodes(tree):
        if is_type_checking(child):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not inside_functions:
            continue
        yield child
        yield from nodes(child, inside_functions)


def imports(module, inside_functions=True):
    """Dotted names that a module imports; `from a import b` gives `a.b` where that is a module, else `a`."""
    found = set()
    for node in nodes(ast.parse(MODULES[module].read_text()), inside_functions):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import, which hides its floor"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return found


def test_every_module_has_a_floor():
    assert {part(module) for module in MODULES} - {""} == set(FLOORS)


@EVERY
def test_imports_point_down(module):
    own = FLOORS.get(part(module), 3)  # the package itself offers floors 0 to 3, and the Ray floor lazily
    for name in imports(module):
        if name == "ray_deltastn":
            pytest.fail(f"{module} imports the whole package")
        if name.startswith("ray_deltastn."):
            assert FLOORS[part(name)] <= own, f"{module} (floor {own}) imports {name} (floor {FLOORS[part(name)]})"


@EVERY
def test_response_knows_nothing_of_regularizers(module):
    if part(module) == "response":
        assert not [name for name in imports(module) if part(name) == "regularizers"]


@EVERY
def test_nothing_imports_benchmarks_or_tests(module):
    assert not [name for name in imports(module) if name.split(".")[0] in ("benchmarks", "tests", "conftest")]


def test_modules_do_not_import_each_other_in_circles():
    graph = {m: {n for n in imports(m, inside_functions=False) if n in MODULES and n != m} for m in MODULES}
    # A package's `__init__` gathers its modules; they import each other directly.
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(MODULES)


@EVERY
def test_ray_is_imported_on_its_floor_only(module):
    if FLOORS.get(part(module), 0) >= NEEDS_RAY:
        return
    assert not [name for name in imports(module, inside_functions=False) if name.split(".")[0] == "ray"]
    inside = [name for name in imports(module) if name.split(".")[0] == "ray"]
    assert not inside or module == "ray_deltastn.space"  # `HyperSpace.to_tune`


@EVERY
def test_only_the_command_prints(module):
    calls = [node for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, ast.Call)]
    printed = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert not printed or part(module) == "cli"


# --- without Ray -----------------------------------------------------------------------------------------------------


def run_python(code):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_package_trains_where_ray_is_missing():
    output = run_python("""
import sys
sys.modules["ray"] = None
import ray_deltastn as rd
from ray_deltastn.tasks import build_task
tuner = rd.SelfTuner(build_task({"task": "digits-mlp", "width": 32}), epochs=1, batch_size=64, lr=0.05)
report, = tuner.fit()
assert report["epoch"] == 1 and report["valid_loss"] < 2.25, report  # chance is log 10 = 2.30
assert tuner.space.names[0] in tuner.hyperparameters()
for name in ("DeltaSTNTrainable", "SkOptSearch"):
    try:
        getattr(rd, name)
    except ImportError:
        print("no", name)
try:
    tuner.space.to_tune()
except ImportError:
    print("no domains")
""")
    assert output.split("\n")[:3] == ["no DeltaSTNTrainable", "no SkOptSearch", "no domains"]


def test_importing_the_package_does_not_import_ray():
    output = run_python("""
import sys
import ray_deltastn as rd
import ray_deltastn.tasks
assert "ray" not in sys.modules and "skopt" not in sys.modules
for name in rd.__all__:
    if name not in ("DeltaSTNTrainable", "SkOptSearch", "WarmStart"):
        getattr(rd, name)
assert "ray" not in sys.modules
print(rd.DeltaSTNTrainable.__module__)
assert "ray" in sys.modules
assert "skopt" not in sys.modules
print(rd.SkOptSearch.__name__)
""")
    assert output.split() == ["ray_deltastn.tune.trainable", "SkOptSearch"]


def test_names_of_the_package():
    assert len(set(rd.__all__)) == len(rd.__all__)
    with pytest.raises(AttributeError, match="'ray_deltastn' has no attribute 'DeltaSTN'"):
        rd.DeltaSTN  # noqa: B018
    for name in ("HyperSpace", "Task", "SelfTuner", "Dropout", "Cutout", "L2", "Bounded", "Positive", "Integer"):
        assert name in rd.__all__
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", rd.__version__)


# --- README ----------------------------------------------------------------------------------------------------------

BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_readme_has_the_methods_there_are():
    assert re.findall(r"^\| `([\w-]+)` +\|", README, flags=re.MULTILINE) == list(METHODS)[::-1]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_files_that_the_readme_links_to_exist(link):
    assert (ROOT / link).exists()


def test_readme_python_blocks_run_in_order(ray_cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) >= 2
    # As typed into a Python prompt: functions defined here travel to the workers by value.
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"README.md, block {number + 1}", "exec"), namespace)
    assert math.isfinite(namespace["analysis"].best_result["valid_loss"])
    for name in namespace["tuner"].space.names:
        assert math.isfinite(namespace["analysis"].best_result[f"hyperparameters/{name}"])
    assert [trial.status for trial in namespace["analysis"].trials] == ["TERMINATED"] * 4
    assert namespace["tuner"].done
    assert list(namespace["weights"]) == list(namespace["build"]({}).model.state_dict())
    assert "parameters in 2 layers respond" in capsys.readouterr().out
    assert Path(namespace["analysis"].experiment_path).is_relative_to(os.environ["HOME"])
