"""The tests of the torch path once more, through the Triton kernels, under Triton's interpreter on CPU.

And the kernels compiled for GPUs.

Triton lies in a folder of its own (requirements/triton-interpreter.txt), on the path of these subprocesses only: in the
environment of the other tests its presence would change what other packages do.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
FOLDER = Path(os.environ.get("SPPO_TRITON_FOLDER", ROOT / ".triton"))
# in float64, where no kernel runs, or of a size that takes minutes under the interpreter
LEFT_OUT = "not gradients_are_those and not in_float64 and not any_shape and not no_tensor_of and not no_float32_copy"

pytestmark = pytest.mark.skipif(
    not (FOLDER / "triton").is_dir() and importlib.util.find_spec("triton") is None,
    reason="triton is not installed: pip install --no-deps --target .triton -r requirements/triton-interpreter.txt",
)


def run_with_triton(*arguments: str, interpret: bool = True) -> str:
    path = [str(FOLDER), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "TRITON_INTERPRET": str(int(interpret)),
        "SPPO_TEST_KERNELS": "triton",
        "PYTHONPATH": os.pathsep.join(path),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_the_kernels_alone():
    assert "test_softmax.py" in run_with_triton("tests/unit/parallel/kernels/test_softmax.py")


def test_machine_code():
    output = run_with_triton("tests/unit/parallel/kernels/test_compiled.py", interpret=False)
    assert " passed" in output and " skipped" not in output


@pytest.mark.parametrize("name", ["vocab_log_probs", "linear_log_probs", "linear_sppo_loss"])
def test_in_one_process(name):
    output = run_with_triton(f"tests/unit/parallel/test_{name}.py", "-k", LEFT_OUT)
    assert " passed" in output and " skipped" not in output


def test_over_ranks():
    output = run_with_triton("tests/distributed/parallel", "-k", "2-ranks")
    assert " passed" in output and " skipped" not in output
