"""Imports run one way: data, ops, weights -> models -> tasks -> ... -> cli."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import eqxunet

PACKAGE = Path(eqxunet.__file__).parent
ORDER = [
    {"errors"},
    {"config", "storage", "text"},
    {"data", "weights", "ops"},
    {"models"},
    {"tasks"},
    {"evaluation"},
    {"training", "report"},
    {"runs"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
# Modules of a level that may import each other's neighbours: the downloader serves both.
ALLOWED = {("data", "weights")}


def imports(path):
    """Yields the eqxunet modules that a file imports, as their first component."""
    package = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            parts = [part for part in base if part]
            if parts:
                yield parts[0]
            else:
                yield from (alias.name for alias in node.names)


def test_imports_run_one_way():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if here in ("__init__", "__main__"):
            continue
        for there in imports(path):
            if there == here or there == "__version__" or (here, there) in ALLOWED:
                continue
            if LEVEL[there] >= LEVEL[here]:
                wrong.append(f"{path.name} ({here}) imports {there}")
    assert not wrong


def test_the_package_imports_itself_relatively():
    """What the other tests read."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level or (node.module or "").split(".")[0] != "eqxunet", path
            elif isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] != "eqxunet" for alias in node.names), path


def drawn():
    """Every module of the package, with those that it imports, at its top or in its functions."""
    paths = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        paths[".".join(parts).removesuffix(".__init__")] = path
    graph = {module: set() for module in paths}
    for module, path in paths.items():
        package = path.relative_to(PACKAGE.parent).parts[:-1]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                above = package[: len(package) - node.level + 1]
                there = ".".join([*above, *filter(None, [node.module])])
                names = {f"{there}.{alias.name}" for alias in node.names}
                graph[module] |= {name if name in paths else there for name in names}
    return graph


def test_no_imports_form_a_circle():
    graph = drawn()
    assert {"eqxunet.data.oxford", "eqxunet.data.folder"} <= graph["eqxunet.data.source"]
    # Its error lists the modules of a circle, those in functions included.
    TopologicalSorter(graph).prepare()


def test_every_module_with_arrays_is_checked_by_the_hook():
    top = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()}
    unchecked = {"errors", "config", "storage", "text", "cli"}
    assert set(eqxunet.CHECKED) == {n for n in top if n.isidentifier()} - unchecked - {
        "__init__",
        "__main__",
        "__pycache__",
        "py",
    }
    for name in unchecked:
        for path in [PACKAGE / f"{name}.py", *(PACKAGE / name).glob("*.py")]:
            if path.exists():
                assert "jaxtyping" not in path.read_text(), path


def test_jax_internals_stand_in_one_file_and_convolution_is_used_as_a_whole():
    internal = ("jax.interpreters", "jax.extend", "manual_axis_type", "pcast")
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if path != PACKAGE / "ops" / "internals.py":
            assert not any(name in text for name in internal), path
        if "ops" not in path.relative_to(PACKAGE).parts:
            assert ".ops." not in text, path


def test_only_the_command_line_prints():
    for path in PACKAGE.rglob("*.py"):
        if "cli" not in path.relative_to(PACKAGE).parts:
            for node in ast.walk(ast.parse(path.read_text())):
                assert not (
                    isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
                ), path


def test_help_imports_neither_jax_nor_tensorflow_datasets():
    code = (
        "import sys; from eqxunet.cli import app\n"
        "libraries = 'jax tensorflow_datasets orbax matplotlib grain array_record'\n"
        "print([m for m in libraries.split() if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
