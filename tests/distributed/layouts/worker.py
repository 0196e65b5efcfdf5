"""Runs many configurations through the real entry point in one set of processes.

    torchrun --nproc-per-node N worker.py runs.json

runs.json: [[name, [override, ...]], ...]. Rank 0 prints one line per run that failed.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path

from sppo_megatron.config.compose import compose_config
from sppo_megatron.rollout.registry import check_run
from sppo_megatron.train import command as train


def main() -> None:
    train.set_up_logging(rank=1)
    for name, overrides in json.loads(Path(sys.argv[1]).read_text()):
        config, composed = compose_config(overrides)
        check_run(config, int(os.environ["WORLD_SIZE"]))
        try:
            # Joins and leaves the process group by itself: groups that stay behind keep their threads, and hundreds
            # of gloo's event loops take the cores away.
            train.run(config, composed)
        except Exception:
            print(f"{name} failed on rank {os.environ['RANK']}", flush=True)
            traceback.print_exc()
            raise
        gc.collect()


if __name__ == "__main__":
    main()
