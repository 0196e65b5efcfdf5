"""sppo reshard: makes a checkpoint that was saved for its own layout one that continues in every layout.

    torchrun --nproc-per-node N -m sppo_megatron.cli.reshard RUN/checkpoints/step_00000100 --output FOLDER

Runs on as many ranks, and with the same kernels, as TP, PP and EP of the run that saved it take; of data-parallel ranks
one is enough. Writes FOLDER/step_00000100, which the run continues from with checkpoint.load=FOLDER/step_00000100.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sppo_megatron.cluster.exit_codes import exit_code_of
from sppo_megatron.cluster.garbage_collection import garbage_collection_paused
from sppo_megatron.config import Config
from sppo_megatron.config.parallelism import check_processes
from sppo_megatron.config.values import to_config
from sppo_megatron.errors import ConfigError
from sppo_megatron.train.command import set_up_logging
from sppo_megatron.train.resume import SETTINGS


def main(arguments: Sequence[str] | None = None) -> int:
    """Reshards; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="sppo reshard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="the folder step_NNNNNNNN")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write one of the same name into")
    options = parser.parse_args(arguments)
    set_up_logging(int(os.environ.get("RANK", "0")))
    return exit_code_of("resharding", lambda: _run(options.checkpoint, options.output))


def _run(checkpoint: Path, output: Path) -> int:
    with garbage_collection_paused():
        from sppo_megatron.policy.checkpoint.folder import check_whole
        from sppo_megatron.policy.initialize import joined_job
    check_whole(checkpoint)
    if (output / checkpoint.name).exists():
        raise ConfigError(f"{output / checkpoint.name} exists: give another --output")
    values = json.loads((checkpoint / SETTINGS).read_text())["config"]
    config = to_config(values)
    config.model = replace(config.model, init="random")  # all weights come from the checkpoint
    check_processes(config.parallelism, int(os.environ.get("WORLD_SIZE", "1")))
    with joined_job(config.parallelism.distributed_timeout_minutes):
        _reshard(config, checkpoint, output)
    return 0


def _reshard(config: Config, checkpoint: Path, output: Path) -> None:
    from sppo_megatron.cluster.consensus import agreed
    from sppo_megatron.hf.hf_config import load_hf_config
    from sppo_megatron.hf.hf_folder import resolve_hf_folder
    from sppo_megatron.policy.checkpoint.folder import MANIFEST, MODEL
    from sppo_megatron.policy.checkpoint.training import WEIGHTS, Checkpointer
    from sppo_megatron.policy.initialize import destroy_model_parallel, initialize_model_parallel
    from sppo_megatron.policy.policy import Policy
    from sppo_megatron.train.inputs import open_model
    from sppo_megatron.train.state import TrainerState

    def copy_host_state(folder: Path) -> None:
        for file in checkpoint.iterdir():
            if file.is_file() and file.name not in (MANIFEST, MODEL):
                shutil.copy2(file, folder / file.name)
            elif file.is_dir() and file.name != WEIGHTS:
                shutil.copytree(file, folder / file.name)

    def build() -> Policy:
        folder = resolve_hf_folder(config.model.hf_path)
        return Policy(config, open_model(config, folder, load_hf_config(str(folder))), groups, total_steps=1)

    groups = initialize_model_parallel(config.parallelism, config.train.seed)
    try:
        policy = agreed(build)
        try:
            checkpointer = Checkpointer(policy, output, keep_last=1, async_save=False)
            checkpointer.load(checkpoint)
            checkpointer.save(TrainerState.read(checkpoint).step, copy_host_state)
        finally:
            policy.close()
    finally:
        destroy_model_parallel()


if __name__ == "__main__":
    sys.exit(main())
