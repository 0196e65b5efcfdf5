"""The Megatron-Core policy: the only room that imports megatron.core and transformer_engine.

Importing this package gives Megatron-Core a CPU device if the machine has no CUDA (see `cpu`), which must happen
before megatron.core is imported anywhere.
"""

import importlib.util

from sppo_megatron import megatron_cpu as cpu

if importlib.util.find_spec("megatron") is None:
    raise ImportError(
        "sppo_megatron.policy needs megatron-core: pip install 'megatron-core>=0.19.2,<0.20' "
        "(on Python 3.11: pip install --no-deps --ignore-requires-python megatron-core==0.19.2)"
    )
cpu.install()
