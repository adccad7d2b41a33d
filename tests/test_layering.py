"""Imports point downwards only, heavy libraries stay where they belong, --help needs none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "cxrjax"
LEAVES = {
    "config",
    "losses",
    "bootstrap",
    "verdict",
    "log",
    "checkpoint",
    "runtime",
    "ahead",
    "stop_signals",
    "lungs.network",
}
BASE = {"errors", "defaults", "packing", ""}
LAYERS = [
    BASE,
    LEAVES,
    {"plotting", "metrics", "calibration", "conformal", "threads"},
    {"lungs.segment"},
    {"optim", "run_folder", "data", "models", "selective", "comparison", "decision"},
    {"step", "predictions", "lungs"},
    {"figures", "evaluation_figures", "uncertainty", "decision_report", "trained"},
    {"evaluation", "build", "prefix"},
    {"audit", "explain", "report"},
    {"outcome"},
    {"loop"},
    {"sweep"},
    {"bench"},
    {
        "cli",
        "main",
        "compare",
        "decide",
        "predict",
        "convert",
        "__main__",
        "data.__main__",
        "bench.__main__",
        "audit.__main__",
        "lungs.__main__",
        "explain.__main__",
        "report.__main__",
        "sweep.__main__",
    },
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Which modules may import a library at all, and whether at their top level.
OWNERS = {
    "orbax": {"checkpoint"},
    "h5py": {"models.keras_h5"},
    "tensorflow": {"data.tfdata", "data.tfds_builders"},
    "tensorflow_datasets": {"data.tfds_builders"},
}


def _modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__").removesuffix("__init__"), ast.parse(path.read_text())


MODULES = list(_modules())


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def group(name):
    """The unit a module belongs to: itself at the top level, else the folder it lies in."""
    return name if name in LEVEL else name.split(".")[0]


def ours(tree):
    names = {name for name, _ in MODULES}
    for target in imported(tree):
        if not target.startswith("cxrjax"):
            continue
        inner = target.removeprefix("cxrjax").removeprefix(".")
        while inner and inner not in names:
            inner = inner.rpartition(".")[0]
        yield inner


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=lambda v: v if isinstance(v, str) else "")
def test_imports_point_downwards(name, tree):
    unit = group(name)
    assert unit in LEVEL, f"{name} has no layer: add it to LAYERS"
    for target in ours(tree):
        other = group(target)
        if other == unit and other in (
            "data",
            "models",
            "bench",
            "audit",
            "lungs",
            "explain",
            "report",
            "sweep",
        ):
            continue
        if unit == "cli" or (unit in LAYERS[-1] and other == "cli"):
            continue
        assert LEVEL[other] < LEVEL[unit], f"{name} imports {target}"
        if unit in LEAVES:
            assert other in BASE, f"the leaf {name} imports {target}"


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=lambda v: v if isinstance(v, str) else "")
def test_imports_are_absolute(name, tree):
    """A relative import would pass by the checks of this file."""
    relative = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level > 0]
    assert not relative, f"{name} imports relatively in line {relative[0].lineno}"


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=lambda v: v if isinstance(v, str) else "")
def test_heavy_libraries_have_one_owner(name, tree):
    for target in imported(tree):
        library = target.split(".")[0]
        assert name in OWNERS.get(library, {name}), f"{name} imports {library}"
    if name != "data.tfds_builders":
        top = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
        heavy = {target.split(".")[0] for target in imported(top)}
        assert not heavy & {"tensorflow", "tensorflow_datasets", "h5py", "pydicom", "orbax"}


@pytest.mark.parametrize(
    "module",
    [
        "cxrjax.main",
        "cxrjax.compare",
        "cxrjax.decide",
        "cxrjax.data",
        "cxrjax.convert",
        "cxrjax.bench",
        "cxrjax.audit",
        "cxrjax.lungs",
        "cxrjax.explain",
        "cxrjax.report",
        "cxrjax.predict",
        "cxrjax.sweep",
        "cxrjax",
    ],
)
def test_help_answers_and_imports_nothing_heavy(module):
    probe = (
        "import runpy, sys\n"
        f"sys.argv = ['{module}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('{module}', run_name='__main__')\n"
        "except SystemExit as done:\n"
        "    assert not done.code, done.code\n"
        "heavy = {'jax', 'tensorflow', 'keras', 'flax', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
