"""Tests for a machine with an NVIDIA card (`make test-gpu`). What the machine lacks is left out by name, at the end of the report.

`--on cpu` runs them on the CPU instead, without those that only a card can pass, to see that the tests themselves are sound.
"""

import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec

import pytest


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def has_tool(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name) is not None


def has_module(*names: str) -> Callable[[], bool]:
    return lambda: all(find_spec(name) is not None for name in names)


def vllm_is_here() -> bool:
    """vLLM for a card: that for the CPU is another distribution."""
    from darkroom.jobs.runtime import versions

    return "vllm" in versions("vllm")


# name -> (whether this machine has it, what it lacks without)
THINGS: dict[str, tuple[Callable[[], bool], str]] = {
    "card": (has_cuda, "an NVIDIA card that PyTorch sees"),
    "hopper": (lambda: has_cuda() and _capability() >= (9, 0), "a card of compute capability 9.0 or later"),
    "nvidia-smi": (has_tool("nvidia-smi"), "the command nvidia-smi"),
    "judge": (
        has_module("xgrammar", "qwen_vl_utils", "torchvision"),
        "the packages xgrammar, qwen-vl-utils, torchvision",
    ),
    "vllm": (vllm_is_here, "the package vllm"),
    "int8": (has_module("torchao"), "the package torchao"),
    "fp8": (
        lambda: has_module("torchao")() and (not has_cuda() or _capability() >= (8, 9)),
        "the package torchao and of cards one of compute capability 8.9 or later",
    ),
    "nf4": (has_module("bitsandbytes"), "the package bitsandbytes"),
    "compiler": (
        lambda: has_module("triton")() and (has_tool("gcc")() or has_tool("clang")()),
        "triton and gcc or clang",
    ),
    "flash": (has_module("flash_attn"), "the package flash-attn"),
    "_flash_3": (has_module("flash_attn_interface"), "FlashAttention 3 (flash_attn_interface)"),
    "sage": (has_module("sageattention"), "the package sageattention"),
    "xformers": (has_module("xformers"), "the package xformers"),
    "snakemake": (has_module("snakemake"), "the package snakemake"),
}


def _capability() -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--on", choices=("cuda", "cpu"), default="cuda", help="where the engines compute")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"needs(*names): left out where the machine lacks one of {', '.join(THINGS)}")
    config.left_out = []  # type: ignore[attr-defined]


def lacks(item: pytest.Item, on: str, there: dict[str, bool]) -> list[str]:
    """What a test needs and this machine has not."""
    names = [name for marker in item.iter_markers("needs") for name in marker.args]
    names = ["card", *names] if on == "cuda" else names
    for name in names:
        if name not in there:
            there[name] = THINGS[name][0]()
    return [name for name in dict.fromkeys(names) if not there[name]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    there: dict[str, bool] = {}
    kept, left_out = [], []
    for item in items:
        missing = lacks(item, config.getoption("--on"), there)
        (left_out if missing else kept).append(item)
        if missing:
            reason = " and ".join(THINGS[name][1] for name in missing)
            config.left_out.append(f"LEFT OUT: {item.nodeid}: needs {reason}")  # type: ignore[attr-defined]
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    for line in config.left_out:  # type: ignore[attr-defined]
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--on")


@pytest.fixture(autouse=True)
def empty_card():
    """Each test begins with an empty cache of the allocator, and its peak at nothing."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def on_the_card() -> dict[int, int]:
    """Process id -> MiB of the card's memory, as nvidia-smi says; in a container it may name none."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = (line.split(",") for line in lines if line.count(",") == 1)
    return {int(pid): int(used) for pid, used in found if pid.strip().isdigit() and used.strip().isdigit()}


def used_mib() -> int:
    """MiB of the first card's memory that are in use, by whomever."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0])
