"""MLflow. Where it writes says MLFLOW_TRACKING_URI; without it, a data base in output_dir/mlflow and no server."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sppo_megatron.train.tracking.destinations.base import DestinationKind, Run

_MAX_BATCH = 1000  # metrics that a server takes at once


class MLflow:
    def __init__(self, run: Run) -> None:
        import mlflow

        folder = run.output_dir.resolve() / "mlflow"
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{folder / 'mlflow.db'}"
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        known = run.known_id("mlflow")
        if known is None:
            self._id = self._begin(run, None if "MLFLOW_TRACKING_URI" in os.environ else (folder / "files").as_uri())
            run.note_id("mlflow", self._id)
        else:
            self._id = known
            self._client.update_run(self._id, status="RUNNING")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(number), now, step) for name, number in numbers.items()]
        for start in range(0, len(metrics), _MAX_BATCH):
            self._client.log_batch(self._id, metrics=metrics[start : start + _MAX_BATCH])

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """One JSON file a step among the run's files."""
        table = {"columns": list(columns), "data": [list(row) for row in rows]}
        self._client.log_dict(self._id, table, f"{name}/step_{step:08d}.json")

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _begin(self, run: Run, files: str | None) -> str:
        """files: where the experiment's files lie, None as the server has it."""
        name = str(run.config.mlflow_experiment)
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name, files) if experiment is None else experiment.experiment_id
        begun = self._client.create_run(number, run_name=run.name)
        self._client.log_dict(begun.info.run_id, dict(run.settings), "config.json")
        return begun.info.run_id


MLFLOW = DestinationKind(
    "mlflow", "mlflow_experiment", "mlflow", 'pip install "sppo-megatron[mlflow]", or set it to null', MLflow
)
