"""The structure of the package: imports point to lower floors, and some things stand at one place only."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ray_deltastn"

#: Module or folder → floor.
FLOORS = {
    "_version": 0,
    "maps": 0,
    "domains": 0,
    "space": 0,
    "response": 1,
    "regularizers": 1,
    "methods": 2,
    "task": 3,
    "training": 3,
    "tasks": 4,
    "integrations": 4,
    "tune": 5,
    "plot": 6,
    "compare": 6,
    "reports": 6,
    "cli": 7,
    "__main__": 7,
}
NEEDS_RAY = 5
#: The package itself offers floors 0 to 3, and the Ray floor lazily.
PACKAGE_FLOOR = 3
#: Folders on one floor of which the first must not import the second.
APART = (("response", "regularizers"), ("compare", "reports"), ("plot", "reports"), ("plot", "compare"))


def modules():
    """Dotted module name → its syntax tree; a package's name is its folder's."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


MODULES = modules()


def part(module):
    """Name of the module or folder under the package that a module belongs to; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def floor(module):
    return FLOORS.get(part(module), PACKAGE_FLOOR)


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes(tree, inside_functions):
    """All nodes except those that only a type checker sees, and, unless asked for, those inside functions."""
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
    for node in nodes(MODULES[module], inside_functions):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import, which hides its floor"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return found


def test_imports_point_down():
    assert {part(module) for module in MODULES} - {""} == set(FLOORS)
    wrong = []
    for module in MODULES:
        for name in imports(module):
            inside = name.startswith("ray_deltastn.") and floor(name) <= floor(module)
            if not inside and name.split(".")[0] in ("ray_deltastn", "benchmarks", "tests", "conftest"):
                wrong.append(f"{module} (floor {floor(module)}) imports {name}")
            if (part(module), part(name)) in APART:
                wrong.append(f"{module} imports {name}, which must stay apart")
    assert not wrong


def test_modules_do_not_import_each_other_in_circles():
    graph = {m: {n for n in imports(m, inside_functions=False) if n in MODULES and n != m} for m in MODULES}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)


def test_ray_is_imported_on_its_floor_only():
    low = [module for module in MODULES if floor(module) < NEEDS_RAY]
    needing = [m for m in low if any(name.split(".")[0] == "ray" for name in imports(m))]
    assert needing == ["ray_deltastn.space"]  # `HyperSpace.to_tune`
    assert not any(name.split(".")[0] == "ray" for m in needing for name in imports(m, inside_functions=False))


def test_only_the_command_prints():
    calls = [(m, node) for m, tree in MODULES.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    printing = [m for m, call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert {part(module) for module in printing} <= {"cli"}


def test_columns_are_spelled_in_one_file():
    columns = re.compile(r"(hyperparameters|scale|seconds|warning)/")
    spelled = []
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            documentation = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if documentation:
                node.value.value = None
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and columns.match(node.value):
                spelled.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}")
    assert not spelled


def test_no_test_file_is_imported():
    wrong = []
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            tests = [n for n in names if n.startswith("tests.") and any(p.startswith("test_") for p in n.split("."))]
            wrong += [f"{path.relative_to(ROOT)}:{node.lineno} imports {name}" for name in tests]
    assert not wrong
