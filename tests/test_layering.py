"""Imports run one way: data, weights -> models -> ... -> cli."""

import ast
import subprocess
import sys
from pathlib import Path

import eqxunet

PACKAGE = Path(eqxunet.__file__).parent
ORDER = [
    {"errors"},
    {"config"},
    {"data", "weights", "kernels"},
    {"models"},
    {"losses", "metrics"},
    {"optimizer", "statistics", "checkpoint"},
    {"training", "evaluation"},
    {"inference", "runs", "report"},
    {"scores"},
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
        if here == "__init__":
            continue
        for there in imports(path):
            if there == here or there == "__version__" or (here, there) in ALLOWED:
                continue
            if LEVEL[there] >= LEVEL[here]:
                wrong.append(f"{path.name} ({here}) imports {there}")
    assert not wrong


def test_every_module_with_arrays_is_checked_by_the_hook():
    top = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()}
    unchecked = {"errors", "config", "cli"}
    assert set(eqxunet.CHECKED) == {n for n in top if n.isidentifier()} - unchecked - {
        "__init__",
        "__pycache__",
    }
    for name in unchecked:
        for path in [PACKAGE / f"{name}.py", *(PACKAGE / name).glob("*.py")]:
            if path.exists():
                assert "jaxtyping" not in path.read_text(), path


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
        "print([m for m in ('jax', 'tensorflow_datasets', 'orbax', 'matplotlib') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
