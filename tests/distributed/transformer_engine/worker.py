"""Runs configurations as the worker of the layouts does, and insists that Transformer Engine's layers did the work.

torchrun --nproc-per-node N worker.py runs.json
"""

from __future__ import annotations

import transformer_engine_torch

from tests.distributed.layouts.worker import main

KERNELS = ("rmsnorm_fwd", "rmsnorm_bwd", "generic_gemm", "fused_rope_forward", "multi_tensor_adam")

if __name__ == "__main__":
    main()
    for kernel in KERNELS:
        assert transformer_engine_torch.calls[kernel] > 0, f"nothing called {kernel}"
