"""sppo train: online SPPO on Megatron-Core; on many ranks `torchrun ... -m sppo_megatron.train`.

A configuration that can't run ends with exit code 2 and one message from rank 0, before anything expensive: that is
why the heavy parts are imported inside `run`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from sppo_megatron.cluster.exit_codes import exit_code_of
from sppo_megatron.cluster.garbage_collection import garbage_collection_paused
from sppo_megatron.config import Config
from sppo_megatron.config.compose import compose_config, config_folder
from sppo_megatron.errors import ConfigError

if TYPE_CHECKING:
    from sppo_megatron.cluster.output_lock import OutputLock
    from sppo_megatron.train.build import Parts
from sppo_megatron.rollout.registry import check_run

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: told to stop by SIGTERM or SIGUSR1, and saved; the same command continues


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one training; returns the exit code."""
    options = _parse(arguments)
    set_up_logging(int(os.environ.get("RANK", "0")))
    return exit_code_of("training", lambda: _run_command(options))


def _run_command(options: argparse.Namespace) -> int:
    config, composed = compose_config(options.overrides, extra_folder=options.config_dir)
    if options.cfg:
        print(OmegaConf.to_yaml(composed), end="")
        return 0
    check_run(config, int(os.environ.get("WORLD_SIZE", "1")))
    return run(config, composed)


def run(config: Config, composed: DictConfig) -> int:
    """Builds the parts, trains, exports the policy; returns the exit code.

    Raises, the same on every rank, ConfigError for what only reading the data and the model can tell, and
    TrainingError if the run can't go on; LostRankError if another rank is lost.
    """
    with garbage_collection_paused():
        from sppo_megatron.cluster.failure_report import failures_reported
        from sppo_megatron.cluster.output_lock import locked_output
        from sppo_megatron.policy.initialize import joined_job
        from sppo_megatron.train import build

    timeout = config.parallelism.distributed_timeout_minutes
    with joined_job(timeout), failures_reported(), locked_output(Path(config.output_dir)) as lock:
        continue_or_refuse(config)
        with build.job(config, composed) as parts:
            return _train(config, composed, parts, lock)


def _train(config: Config, composed: DictConfig, parts: Parts, lock: OutputLock) -> int:
    from sppo_megatron.cluster.interrupt import Interrupted
    from sppo_megatron.train import build
    from sppo_megatron.train.preemption import Preempted

    started = time.perf_counter()
    trainer = build.build_trainer(config, composed, parts, lock)
    try:
        with trainer.display:
            trainer.run()
        build.export_policy(config, parts)
    except Preempted as stop:
        logging.getLogger(__name__).warning("%s", stop)
        return EXIT_PREEMPTED
    except Interrupted:
        logging.getLogger(__name__).warning("the policy isn't exported yet: %s", Preempted(trainer.state.step))
        return EXIT_PREEMPTED
    except Exception as error:
        error.add_note(f"after optimizer step {trainer.state.step}")
        raise
    finally:
        build.close(trainer, parts)
    build.print_results(config, trainer, time.perf_counter() - started)
    return 0


def continue_or_refuse(config: Config) -> None:
    """Settles for all ranks alike whether this run continues one that lies in output_dir. Collective.

    torchrun starts the same command again after a failure. Every node counts its own restarts, and one that took the
    place of a lost node has none, so the highest count tells: then checkpoint.load=latest is set.
    Raises ConfigError if a run lies in output_dir and this one wouldn't continue it: nothing is overwritten.
    """
    from sppo_megatron.cluster.consensus import agreed, of_all_ranks

    restarts = of_all_ranks(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    if config.checkpoint.load is None and max(restarts) > 0:
        config.checkpoint.load = "latest"
    agreed(lambda: _check_output_dir(config))


def _check_output_dir(config: Config) -> None:
    if config.checkpoint.load is None and (Path(config.output_dir) / "metrics.jsonl").exists():
        raise ConfigError(
            f"output_dir={config.output_dir} holds a run already: continue it with checkpoint.load=latest, "
            "or give another output_dir"
        )


def set_up_logging(rank: int) -> None:
    """Rank 0 speaks; the others speak up only for errors. Third-party chatter is left out."""
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR, format="%(levelname)s %(message)s")
    for name in ("megatron", "httpx", "transformers", "torch.distributed", "filelock", "vllm", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(megatron|torch|vllm)\..*")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    groups = sorted(path.name for path in config_folder().iterdir() if path.is_dir())
    parser = argparse.ArgumentParser(
        prog="sppo train",
        description="Online SPPO on Megatron-Core.",
        epilog=f"Config groups: {', '.join(groups)}. Every key: docs/configuration.md, or --cfg to print them.",
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides: key=value, group=option, experiment=NAME")
    parser.add_argument("--cfg", action="store_true", help="print the composed configuration and exit")
    parser.add_argument("--config-dir", help="one more folder of config groups and experiments")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
