"""With SPPO_TEST_KERNELS=triton every test of this folder runs through the Triton kernels wherever they can run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from sppo_megatron.parallel import kernels


@pytest.fixture(scope="session", autouse=True)
def triton_kernels() -> Iterator[None]:
    if os.environ.get("SPPO_TEST_KERNELS") != "triton":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_runs_natively", lambda device, dtype: dtype == torch.float32)
        yield
