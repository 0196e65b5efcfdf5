"""One rank, with and without a process group; several are in tests/integration and tests/distributed."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from omegaconf import OmegaConf

from sppo_megatron.cluster.consensus import agreed, check_same_config, decided_by_first_rank, of_first_rank
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


def test_what_a_user_can_mend_becomes_one_error(ranks):
    with pytest.raises(ConfigError, match=r"^the reason$"):
        agreed(lambda: fail(ConfigError("the reason")))


@pytest.mark.parametrize("kind", [ValueError, ImportError, FileNotFoundError, ZeroDivisionError])
def test_an_error_of_a_library_stays_what_it_is(ranks, kind):
    with pytest.raises(kind) as raised:
        agreed(lambda: fail(kind("deep inside")))
    assert raised.type is kind and raised.traceback[-1].name == "fail"


def test_rank_0_decides(ranks):
    assert decided_by_first_rank(lambda: "its word") == "its word"
    with pytest.raises(ConfigError, match=r"the reason$"):
        decided_by_first_rank(lambda: fail(ConfigError("the reason")))
