"""Set up the tests and the benchmark for a card on a machine that has PyTorch for CUDA and transformers but no internet.

    python envs/gpu_wheels.py have > have.txt                  there: what it has
    python envs/gpu_wheels.py collect --have have.txt --to DIR  with internet: the wheels that it lacks
    python envs/gpu_wheels.py install --from DIR --into SITE    there; then PYTHONPATH=SITE
    python envs/gpu_wheels.py check                             there: what is missing, within a second or two

`gpu.lock` names the wheels, in groups. All but the group `core` can be left out (`--without nf4,workflow`), and so are the tests
and the parts that need them. vLLM and kernels of attention are used where the machine has them, and are not brought. Nothing but
the standard library is needed, and nothing is imported of what is looked for.
"""

import argparse
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, distributions, version
from importlib.util import find_spec
from pathlib import Path

LOCK = Path(__file__).with_name("gpu.lock")
PYTHONS = ("3.11", "3.12", "3.13")
# What the machine has to bring: these, and what every version of them needs itself.
GIVEN = frozenset(
    "torch transformers tokenizers safetensors huggingface-hub hf-xet numpy packaging pyyaml regex tqdm filelock fsspec"
    " typing-extensions jinja2 markupsafe networkx sympy mpmath setuptools triton".split()
)
# By group: what is wanted of it itself, and what it is for.
GROUPS = {
    "core": ("pyarrow psutil pillow pydantic diffusers accelerate peft pytest", "every test and part"),
    "judge": ("xgrammar qwen-vl-utils", "the judge"),
    "int8": ("torchao", "quantization: int8, fp8"),
    "nf4": ("bitsandbytes", "quantization: nf4"),
    "workflow": ("snakemake", "runs of the workflow"),
}
# Pure Python that its index has as source alone: made into a wheel where the others are collected.
SOURCES = frozenset({"connection-pool"})
# A wheel is taken where it was built for one of these; pip takes no range.
MANYLINUX = (*(f"2_{number}" for number in range(34, 16, -1)), "2014", "2010", "1")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, dict[str, str]]:
    """group -> normal name -> version, of gpu.lock."""
    found: dict[str, dict[str, str]] = {}
    for line in LOCK.read_text().splitlines():
        if line.startswith("# group "):
            group = found.setdefault(line.split()[2], {})
        elif line and not line.startswith("#"):
            name, _, pin = line.partition("==")
            group[normal(name)] = pin
    return found


def wanted(without: str, have: dict[str, str], also: str = "") -> list[str]:
    """name==version of the wheels to bring. Exits with a sentence where a group is unknown."""
    left_out = set(filter(None, without.split(",")))
    if unknown := left_out - set(GROUPS) | (left_out & {"core"}):
        sys.exit(f"error: --without {sorted(unknown)[0]}: expected some of {', '.join(list(GROUPS)[1:])}")
    anyway = set(map(normal, filter(None, also.split(","))))
    pins = {name: pin for group, part in locked().items() if group not in left_out for name, pin in part.items()}
    return [f"{name}=={pin}" for name, pin in sorted(pins.items()) if name not in have or name in anyway]


def pip_target(python: str) -> list[str]:
    """Arguments by which pip looks for wheels of another machine's Python, x86-64 Linux."""
    tags = [part for tag in MANYLINUX for part in ("--platform", f"manylinux{'_' * ('_' in tag)}{tag}_x86_64")]
    return ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *tags]


def have() -> dict[str, str]:
    """normal name -> version of what this machine has."""
    return {normal(found.name): found.version for found in distributions() if found.name}


def read_have(path: str | None) -> tuple[dict[str, str], str | None]:
    """(normal name -> version, Python) of a machine, as `have` prints it."""
    found: dict[str, str] = {}
    for line in Path(path).read_text().splitlines() if path else []:
        name, _, pin = line.strip().partition("==")
        if pin:
            found[normal(name)] = pin
    return found, found.pop("python", None)


def collect(arguments: argparse.Namespace) -> int:
    there, python = read_have(arguments.have)
    python = arguments.python or python or PYTHONS[1]
    if python not in PYTHONS:
        sys.exit(f"error: Python {python}: expected one of {', '.join(PYTHONS)}")
    names = wanted(arguments.without, there, arguments.also)
    sources = [name for name in names if name.partition("==")[0] in SOURCES]
    wheels = [name for name in names if name not in sources]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if arguments.dry_run:
        with tempfile.TemporaryDirectory() as unused:
            dry = [*pip, "install", "--dry-run", "--no-deps", "--ignore-installed", "--target", unused]
            commands = [[*dry, *pip_target(python), *wheels]] if wheels else []
            commands += [[*dry, *sources]] if sources else []
            failed = any(subprocess.run(command).returncode for command in commands)
        print(f"Python {python}: {len(names)} wheels are {'not all ' * failed}to be had: {' '.join(names)}")
        return int(failed)
    folder = Path(arguments.to)
    folder.mkdir(parents=True, exist_ok=True)
    commands = [[*pip, "download", "--no-deps", *pip_target(python), "-d", str(folder), *wheels]] if wheels else []
    commands += [[*pip, "wheel", "--no-deps", "-w", str(folder), *sources]] if sources else []
    if any(subprocess.run(command).returncode for command in commands):
        sys.exit("error: not all wheels were fetched; pip says above which")
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.whl")}
    for name, size in sorted(sizes.items(), key=lambda one: -one[1])[:12]:
        print(f"{size / 2**20:8.1f} MiB  {name}")
    print(f"{sum(sizes.values()) / 2**20:8.1f} MiB  {len(sizes)} wheels in {folder}, for Python {python}")
    return 0


def install(arguments: argparse.Namespace) -> int:
    """The wheels into a folder of their own. Unpacked as they are: where Python is a virtual environment pip may not be there."""
    source, site = Path(arguments.source), Path(arguments.into)
    wheels = sorted(source.glob("*.whl"))
    if not wheels:
        sys.exit(f"error: {source}: no wheels; `collect --to` puts them there")
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    for wheel in wheels:
        kind = wheel.stem.split("-")[-3]
        if "cp3" in kind and tag not in kind and "abi3" not in wheel.stem:
            sys.exit(f"error: {wheel.name} is not for Python {platform.python_version()}; collect with --python")
    shutil.rmtree(site, ignore_errors=True)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as files:
            files.extractall(site)
    for data in site.glob("*.data/*lib"):  # purelib, platlib
        shutil.copytree(data, site, dirs_exist_ok=True)
    print(f"{len(wheels)} wheels are in {site}; export PYTHONPATH={site}")
    return 0


def missing() -> tuple[list[str], list[str]]:
    """(what nothing works without, what is left out or in another version than is asked for) on this machine."""
    fatal, left_out = [], []
    here = ".".join(platform.python_version_tuple()[:2])
    if here not in PYTHONS:
        fatal.append(f"Python {here}: 3.11 to 3.13 are supported")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        fatal.append(f"{sys.platform} on {platform.machine()}: the wheels are for Linux on x86-64")
    cuda = torch_cuda()
    if cuda is None:
        fatal.append("PyTorch is not installed")
    elif not cuda:
        fatal.append("PyTorch is installed without CUDA")
    if not card():
        fatal.append("nvidia-smi shows no card (no NVIDIA card, or no driver)")
    if find_spec("transformers") is None:
        fatal.append("transformers is not installed")
    for group, (names, purpose) in GROUPS.items():
        for name in names.split():
            wrong = needs_of(name, set())
            for text in wrong:  # another version may do
                (fatal if group == "core" and " wants " not in text else left_out).append(f"{text} (for {purpose})")
    if find_spec("torchvision") is None:
        left_out.append("torchvision is not installed, of the version that belongs to this PyTorch (for the judge)")
    if find_spec("vllm") is None:
        left_out.append("vllm is not installed (for the judge through vLLM)")
    if not (shutil.which("gcc") or shutil.which("clang")):
        left_out.append("gcc or clang is not on the PATH (for compile: true)")
    if find_spec("triton") is None:
        left_out.append("triton is not installed (for compile: true)")
    return list(dict.fromkeys(fatal)), list(dict.fromkeys(left_out))


def needs_of(name: str, seen: set[str]) -> list[str]:
    """What a package lacks here, itself or through others: not installed, or another version than is asked for."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [] if name_is_there(name) else [f"{name} is not installed"]
    if name in seen:
        return []
    seen.add(name)
    if not name_is_there(name):
        return [f"{name} is not installed"]
    wrong = []
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        other = normal(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if name_is_there(other) and not requirement.specifier.contains(version(other), prereleases=True):
            wrong.append(f"{name} wants {other}{requirement.specifier}, and {version(other)} is here")
        elif other not in GIVEN or not name_is_there(other):
            wrong += needs_of(other, seen)
    return wrong


def name_is_there(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def torch_cuda() -> str | None:
    """The version of CUDA that PyTorch was built for, empty without CUDA, None without PyTorch; torch is not imported."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return None
    text = Path(found.origin).with_name("version.py").read_text()
    match = re.search(r"^cuda\b.*=\s*'([^']+)'", text, re.M)
    return match[1] if match else ""


def card() -> list[str]:
    """Name, driver and memory of each card, as nvidia-smi says."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def check() -> int:
    fatal, left_out = missing()
    for name in ("torch", "transformers", "diffusers", "torchao", "bitsandbytes", "vllm", "snakemake"):
        if name_is_there(name):
            print(f"{name} {version(name)}")
    print(f"Python {platform.python_version()}, CUDA {torch_cuda() or 'none'}, card {'; '.join(card()) or 'none'}")
    for text in left_out:
        print(f"{'OTHER VERSION' if ' wants ' in text else 'LEFT OUT'}: {text}")
    for text in fatal:
        print(f"MISSING: {text}")
    return 1 if fatal else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="what is missing here; exit 1 where nothing works without it")
    commands.add_parser("have", help="what this machine has, for collect")
    one = commands.add_parser("collect", help="fetch the wheels, on a machine with internet")
    one.add_argument("--have", help="what `have` printed there; without it, that it has PyTorch and transformers alone")
    one.add_argument("--python", help=f"of that machine: {', '.join(PYTHONS)}; as in --have unless told")
    one.add_argument("--to", default="build/gpu-wheels")
    one.add_argument("--without", default="", help="groups to leave out, with commas")
    one.add_argument("--also", default="", help="packages to bring although that machine has them, with commas")
    one.add_argument("--dry-run", action="store_true", help="only ask the index whether all are to be had")
    other = commands.add_parser("install", help="put the wheels into a folder, on the machine with the card")
    other.add_argument("--from", dest="source", default="build/gpu-wheels")
    other.add_argument("--into", default="build/gpu-site")
    arguments = parser.parse_args()
    if arguments.command == "check":
        return check()
    if arguments.command == "have":
        print(f"python=={'.'.join(platform.python_version_tuple()[:2])}")
        print("\n".join(f"{name}=={pin}" for name, pin in sorted(have().items())))
        return 0
    return collect(arguments) if arguments.command == "collect" else install(arguments)


if __name__ == "__main__":
    sys.exit(main())
