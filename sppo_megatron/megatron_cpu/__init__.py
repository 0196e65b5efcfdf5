"""What Megatron-Core needs to run on CPU and gloo. Does nothing on a machine with CUDA.

`install()` gives the modules of `megatron`, and no other module of the process, a torch whose CUDA half is answered by
the CPU (`shim`), and patches the few places of Megatron-Core's checkpointing that assume CUDA tensors (`patches`).
"""

from sppo_megatron.megatron_cpu.shim import install

__all__ = ["install"]
