"""One rank, with and without a process group; several are in tests/integration and tests/distributed."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from omegaconf import OmegaConf

from sppo_megatron.cluster.consensus import agreed, check_same_config, of_first_rank
from sppo_megatron.errors import ConfigError


@pytest.fixture(params=["alone", "in a group"])
def ranks(request):
    if request.param == "alone":
        yield
        return
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def fail(error: Exception) -> None:
    raise error


def test_what_is_built_is_returned(ranks):
    assert agreed(lambda: [1]) == [1]
    assert of_first_rank({"a": 1}) == {"a": 1}
    check_same_config(OmegaConf.create({"a": 1}))


@pytest.mark.parametrize("kind", [ValueError, ImportError, FileNotFoundError, FileExistsError])
def test_what_a_user_can_mend_becomes_one_error(ranks, kind):
    with pytest.raises(ConfigError, match=r"^the reason$"):
        agreed(lambda: fail(kind("the reason")))


def test_other_errors_pass(ranks):
    with pytest.raises(ZeroDivisionError):
        agreed(lambda: fail(ZeroDivisionError()))
