"""Where metrics go: metrics.jsonl always, TensorBoard and Weights & Biases if configured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo_megatron.config import LoggerConfig
from sppo_megatron.data.atomic_file import write_atomically
from sppo_megatron.errors import ConfigError
from sppo_megatron.tracking.metrics_file import MetricsFile, to_plain

WANDB_ID_FILE = "wandb_run_id.txt"


class Tracker:
    """Writes under output_dir: metrics.jsonl, tensorboard/, and, with logger.wandb_project, wandb/.

    enabled: whether this rank writes (one does); elsewhere every method does nothing.
    resume_step: the optimizer step of the checkpoint continued from. What was logged after it is dropped and logged
    again, so metrics.jsonl holds every step once. None is a fresh run: an older run's lines in output_dir are dropped.
    run_config: the resolved configuration, shown by W&B.
    Raises ConfigError, naming what to install, if a configured package is missing.
    """

    def __init__(
        self,
        output_dir: str | Path,
        config: LoggerConfig,
        *,
        enabled: bool = True,
        resume_step: int | None = None,
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        self._metrics_file: MetricsFile | None = None
        self._tensorboard: Any = None
        self._wandb: Any = None
        if not enabled:
            return
        output_dir = Path(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        self._wandb = _start_wandb(output_dir, config, resume_step, run_config)
        self._tensorboard = _start_tensorboard(output_dir, config, resume_step)
        self._metrics_file = MetricsFile(output_dir / "metrics.jsonl")
        self._metrics_file.truncate_after(-1 if resume_step is None else resume_step)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """metrics: names to numbers, with the optimizer step as the integer `step`, or `eval_step` of an evaluation."""
        if self._metrics_file is None:
            return
        self._metrics_file.write(metrics)
        step = int(to_plain(metrics["step"] if "step" in metrics else metrics["eval_step"]))
        numbers = {key: number for key, value in metrics.items() if (number := _number(value)) is not None}
        if self._tensorboard is not None:
            for name, number in numbers.items():
                if name not in ("step", "eval_step"):
                    self._tensorboard.add_scalar(name, number, step)
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(numbers)

    def close(self) -> None:
        """Finishes all of them. A second call does nothing."""
        if self._metrics_file is not None:
            self._metrics_file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._metrics_file = self._tensorboard = self._wandb = None


def _number(value: Any) -> float | int | None:
    plain = to_plain(value)
    return plain if isinstance(plain, (int, float)) else None


def _start_tensorboard(output_dir: Path, config: LoggerConfig, resume_step: int | None) -> Any:
    if not config.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "logger.tensorboard=true needs the package tensorboard: pip install tensorboard, or set it to false"
        ) from error
    # TensorBoard hides what an interrupted run had logged from this step on.
    purge_step = 0 if resume_step is None else resume_step + 1
    return SummaryWriter(log_dir=str(output_dir / "tensorboard"), purge_step=purge_step)


def _start_wandb(
    output_dir: Path, config: LoggerConfig, resume_step: int | None, run_config: Mapping[str, Any] | None
) -> Any:
    if config.wandb_project is None:
        return None
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            'logger.wandb_project is set, which needs the package wandb: pip install "sppo-megatron[wandb]"'
        ) from error
    id_file = output_dir / WANDB_ID_FILE
    known = resume_step is not None and id_file.exists()
    run = wandb.init(
        project=config.wandb_project,
        name=config.wandb_name,
        id=id_file.read_text().strip() if known else None,
        resume="allow",
        dir=str(output_dir),
        config=dict(run_config or {}),
    )
    # W&B's own counter can't go back on a resume; ours is an ordinary metric that every chart is drawn over.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    write_atomically(id_file, run.id + "\n")
    return run
