"""The library's rooms: imports run one way, in no circle, nothing heavy is loaded to plan a run, and Snakemake stays outside."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

SCRIPTS = REPOSITORY / "scripts"
LIBRARY = SCRIPTS / "darkroom"
# From the top of the house to its ground: a module imports from its own room and from those below. A module that is named
# here is not where its room is: the tables of what there is, which everybody may ask, are below what they name.
ORDER = [
    "darkroom.__main__",
    "darkroom.tools",
    "darkroom.run",
    "darkroom.views",
    "darkroom.make",
    "darkroom.exports",
    "darkroom.tables",
    "darkroom.metrics",
    "darkroom.engines",
    "darkroom.store",
    "darkroom.plan",
    "darkroom.rows",
    "darkroom.models",
    "darkroom.config",
    "darkroom.engines.base",
    "darkroom.engines.families",
    "darkroom.engines.__init__",
    "darkroom.plan.stages",
    "darkroom.jobs",
    "darkroom.files",
    "darkroom.identity",
    "darkroom.errors",
    "darkroom.__init__",
]
# What only jobs may load: too slow or too large for every start of Snakemake, and not installed on a login node.
HEAVY = {"torch", "torchao", "torchvision", "vllm", "diffusers", "transformers", "accelerate", "datasets"}
HEAVY |= {"pandas", "pyarrow", "matplotlib", "PIL", "huggingface_hub", "duckdb"}
HEAVY |= {"scipy", "sklearn", "skimage", "imagehash", "faiss", "cv2", "onnxruntime", "rapidocr_onnxruntime"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SCRIPTS).with_suffix("").parts)


MODULES = {module_name(path): path for path in sorted(LIBRARY.rglob("*.py"))}


def nodes(path: Path) -> Iterator[ast.AST]:
    """Every node of a file's code but for imports that only a type checker sees."""
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        yield node
        todo += ast.iter_child_nodes(node)


def imported(path: Path) -> set[str]:
    """What a file imports, at its top or inside its functions: modules, and names from modules."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(name: str) -> str | None:
    """The module of the library that an imported name is, or is in."""
    for found in (name, name.rpartition(".")[0]):
        for module in (found, f"{found}.__init__"):
            if module in MODULES:
                return module
    return None


EDGES = {
    (module, there)
    for module, path in MODULES.items()
    for name in imported(path)
    if (there := own(name)) not in (None, module)
}


def level(module: str) -> int:
    room = ".".join(module.split(".")[:2])
    return ORDER.index(module if module in ORDER else room)


def test_every_module_is_in_a_room():
    assert {
        module for module in MODULES if module not in ORDER and ".".join(module.split(".")[:2]) not in ORDER
    } == set()


def test_imports_run_one_way_between_rooms():
    assert {(module, there) for module, there in EDGES if level(there) < level(module)} == set()


def test_no_modules_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for module, there in EDGES:
        graph.setdefault(module, set()).add(there)
    graphlib.TopologicalSorter(graph).prepare()  # its CycleError names the circle


def test_planning_a_run_loads_nothing_heavy():
    """What the Snakefile imports, run by itself."""
    files = [REPOSITORY / "workflow/Snakefile", *(REPOSITORY / "workflow/rules").glob("*.smk")]
    text = "\n".join(path.read_text() for path in files)
    lines = re.findall(r"^ *(from darkroom\b[^(\n]*(?:\([^)]*\)|$)|import darkroom\b.*$)", text, re.M)
    assert any("darkroom.run" in line for line in lines)
    code = "\n".join([*lines, "import sys", f"print(*sorted({HEAVY!r} & set(sys.modules)))"])
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", MODULES)
def test_the_library_does_not_use_snakemake(module):
    """Its messages may say which command cures what; its code neither imports nor touches Snakemake."""
    used = {name.split(".")[0] for name in imported(MODULES[module])}
    used |= {node.id for node in nodes(MODULES[module]) if isinstance(node, ast.Name)}
    assert not {name for name in used if name.startswith("snakemake")}
