"""Runs many configurations through the real entry point in one set of processes.

    torchrun --nproc-per-node N worker.py runs.json

runs.json: [[name, [override, ...]], ...]. Rank 0 prints one line per run that failed.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import torch.distributed as dist

from sppo_megatron import train
from sppo_megatron.configuration import compose_config
from sppo_megatron.policy.initialize import initialize_distributed
from sppo_megatron.validation import check_config


def main() -> None:
    train.set_up_logging(rank=1)
    initialize_distributed(timeout_minutes=2)
    for name, overrides in json.loads(Path(sys.argv[1]).read_text()):
        config, composed = compose_config(overrides)
        check_config(config, dist.get_world_size())
        try:
            train.run(config, composed)
        except Exception:
            print(f"{name} failed on rank {dist.get_rank()}", flush=True)
            traceback.print_exc()
            raise
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
