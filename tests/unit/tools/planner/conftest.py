"""Jobs on shipped shapes, without a network and without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from sppo_megatron.config.compose import compose_config
from sppo_planner.cluster import GPUS, Assumptions, Cluster
from sppo_planner.job import Job
from sppo_planner.parameters import ParameterTable
from sppo_planner.shipped_shapes import find_architecture


@cache
def table_of(model: str) -> ParameterTable:
    return ParameterTable(find_architecture(model), 128)


@pytest.fixture
def make_job() -> Callable[..., Job]:
    """(*overrides, model, gpus, gpu, **assumptions) -> a job, eight GPUs a node."""

    def make(*overrides: str, model: str = "Qwen2.5-7B", gpus: int = 8, gpu: str = "h100", **assumptions) -> Job:
        config = compose_config([f"model.hf_path={model}", *overrides])[0]
        return Job(table_of(model), config, Cluster(gpus, 8, GPUS[gpu]), Assumptions(**assumptions))

    return make
