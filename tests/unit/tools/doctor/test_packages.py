"""Versions, imports and fits of packages that are made on the spot, as folders where Python finds them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from sppo_doctor.packages import PACKAGES, Package, check_apex, check_packages, import_error

# A fast stand-in for what is imported to try torch; its version is the one that is installed.
TORCH = Package("torch", ("torch",), "math", "pip install torch")
ENGINE = Package("engine", ("engine", "engine-cpu"), "engine", "pip install engine", use="the engine", needed="never")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder that this process and its children find packages in."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    class Site:
        def module(self, name: str, source: str = "") -> None:
            (tmp_path / f"{name}.py").write_text(source)
            importlib.invalidate_caches()

        def folder(self, name: str) -> None:
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name.partition("/")[0] / "__init__.py").touch()
            importlib.invalidate_caches()

        def distribution(self, name: str, version: str, *requires: str) -> None:
            folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
            folder.mkdir()
            lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
            (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {r}" for r in requires)]) + "\n")

    return Site()


def check(*packages: Package, cuda: bool = False) -> dict:
    return {finding.subject: finding for finding in check_packages(packages, cuda=cuda)}


def test_what_fits(site):
    site.module("engine")
    site.distribution("engine", "1.0", "torch>=2.0", "nothing-that-we-look-at==0")
    found = check(TORCH, ENGINE)
    assert [(finding.status, finding.fix) for finding in found.values()] == [("ok", None)] * 2
    assert found["engine"].text == "1.0"


def test_an_engine_made_for_another_torch(site):
    site.module("engine")
    site.distribution("engine-cpu", "1.0", 'torch==1.13.1; platform_system != "Nowhere"')
    finding = check(TORCH, ENGINE)["engine-cpu"]
    assert finding.status == "problem"
    assert "1.0, but it was made for torch==1.13.1, and 2." in finding.text
    assert "pip install 'torch==1.13.1'" in finding.fix


def test_requirements_of_other_platforms_and_extras_do_not_count(site):
    site.module("engine")
    site.distribution("engine", "1.0", 'torch==1.0; platform_system == "Nowhere"', 'torch==1.1; extra == "old"')
    assert check(TORCH, ENGINE)["engine"].status == "ok"


def test_a_local_version_fits_its_public_one(site):
    site.distribution("torch", "2.99.0+cpu")
    site.module("engine")
    site.distribution("engine", "1.0", "torch==2.99.0")
    assert check(TORCH, ENGINE)["engine"].status == "ok"


def test_a_package_that_can_not_be_imported(site):
    site.module("engine", "raise ImportError('libengine.so: undefined symbol: spin')")
    site.distribution("engine", "1.0")
    finding = check(ENGINE)["engine"]
    assert finding.status == "problem"
    assert "1.0 can't be imported: ImportError: libengine.so: undefined symbol: spin" in finding.text
    assert finding.fix == "pip install engine"


def test_a_module_without_metadata_is_tried_too(site):
    site.module("engine", "import nothing_of_this_name")
    assert "ModuleNotFoundError: No module named 'nothing_of_this_name'" in check(ENGINE)["engine"].text


def test_a_crash_ends_another_process(site):
    site.module("engine", "import os; os.abort()")
    assert import_error("engine") == "the process ended with -6"
    assert import_error("math") is None


@pytest.mark.parametrize(
    ("needed", "cuda", "status", "has_fix"),
    [
        ("always", False, "problem", True),
        ("with_cuda", True, "warning", True),
        ("with_cuda", False, "note", False),
        ("never", True, "note", True),
    ],
)
def test_what_is_absent(needed, cuda, status, has_fix):
    absent = Package("absent", ("absent",), "absent_module", "pip install it", use="speed", needed=needed)
    finding = check(absent, cuda=cuda)["absent"]
    assert (finding.status, finding.fix is not None) == (status, has_fix)
    assert "not installed" in finding.text


def test_a_missing_transformer_engine_is_a_warning_on_a_gpu_machine():
    (engine,) = [package for package in PACKAGES if package.name == "transformer-engine"]
    finding = check(engine, cuda=True)["transformer-engine"]
    assert finding.status == "warning"
    assert "FP8" in finding.text and "pip install" in finding.fix


# ------------------------------------------------------------------------------------------------ apex


def test_no_apex_is_no_loss():
    assert check_apex().status == "note"


def test_pypis_apex_is_another_thing(site):
    site.module("apex", "raise SyntaxError('never imported')")
    finding = check_apex()
    assert finding.status == "warning"
    assert "not NVIDIA's apex" in finding.text and "web toolkit" in finding.text
    assert finding.fix.startswith("pip uninstall apex")


def test_nvidias_apex_without_its_extensions(site):
    site.folder("apex/multi_tensor_apply")
    site.module("amp_C")
    finding = check_apex()
    assert finding.status == "warning"
    assert finding.text == "NVIDIA's, without its extensions fused_weight_gradient_mlp_cuda"


def test_nvidias_apex(site):
    site.folder("apex/multi_tensor_apply")
    site.module("amp_C")
    site.module("fused_weight_gradient_mlp_cuda")
    assert check_apex().status == "ok"
