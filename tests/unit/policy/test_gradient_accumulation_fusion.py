"""The LM head's gradient in Megatron's `main_grad`, through Megatron's own data-parallel wrapper."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from sppo_megatron.config import ParallelismConfig
from sppo_megatron.parallel import linear_sppo_loss, vocab_parallel_linear_log_probs
from sppo_megatron.policy.initialize import destroy_model_parallel, initialize_distributed, initialize_model_parallel

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig  # isort: skip
from megatron.core.transformer.transformer_config import TransformerConfig  # isort: skip

TOKENS, WIDTH, VOCABULARY = 24, 16, 48


class Model(torch.nn.Module):
    """Embedding -> linear layer -> head; `tied` gives the head's weight a second use, as Megatron marks it."""

    def __init__(self, dtype: torch.dtype, tied: bool, kind: str, fusion: bool):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype))
        self.layer = torch.nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator).to(dtype))
        if not tied:
            self.head = torch.nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype))
        else:
            self.embedding.zero_out_wgrad = True
        self.tied, self.kind, self.fusion = tied, kind, fusion

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding[ids] @ self.layer
        head = self.embedding if self.tied else self.head
        if self.kind == "log_probs":
            return vocab_parallel_linear_log_probs(
                hidden, head, ids.flip(0), gradient_accumulation_fusion=self.fusion
            ).sum()
        return linear_sppo_loss(
            hidden,
            head,
            ids.flip(0),
            torch.full((TOKENS,), -4.0),
            torch.arange(TOKENS) % 2,
            torch.tensor([1.0, -1.0]),
            torch.tensor([0.01, 0.02]),
            lengths=[TOKENS // 2] * 2,
            gradient_accumulation_fusion=self.fusion,
        ).loss_sum


@pytest.fixture(scope="module")
def groups():
    initialize_distributed(timeout_minutes=1)
    yield initialize_model_parallel(ParallelismConfig(), seed=0)
    destroy_model_parallel()
    dist.destroy_process_group()


def main_grads(model: Model, groups, overlap: bool) -> dict[str, torch.Tensor]:
    """Of two micro-batches, scaled as a loss scaler would."""
    config = TransformerConfig(num_layers=1, hidden_size=WIDTH, num_attention_heads=1)
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=False, overlap_grad_reduce=overlap, grad_reduce_in_fp32=True
    )
    wrapped = DistributedDataParallel(config, ddp_config, model, pg_collection=groups)
    wrapped.zero_grad_buffer()
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randint(0, VOCABULARY, (TOKENS,), generator=generator) for _ in range(2)]
    with wrapped.no_sync():
        (3 * wrapped(batches[0])).backward()
    (3 * wrapped(batches[1])).backward()
    wrapped.finish_grad_sync()
    return {name: parameter.main_grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", ["log_probs", "loss"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_main_grad_is_the_sum_over_micro_batches(groups, kind, tied, overlap, dtype):
    fused = main_grads(Model(dtype, tied, kind, fusion=True), groups, overlap)
    through_autograd = main_grads(Model(dtype, tied, kind, fusion=False), groups, overlap)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for name, expected in through_autograd.items():
        assert fused[name].dtype == torch.float32 and float(expected.abs().max()) > 0.1
        assert float((fused[name] - expected).abs().max() / expected.abs().max()) <= tolerance, name


@pytest.mark.parametrize("kind", ["log_probs", "loss"])
def test_low_precision_weights_get_an_unrounded_gradient(groups, kind):
    fused = main_grads(Model(torch.bfloat16, False, kind, fusion=True), groups, False)["head"]
    rounded = main_grads(Model(torch.bfloat16, False, kind, fusion=False), groups, False)["head"]
    assert (fused != fused.bfloat16().float()).float().mean() > 0.9
    assert 0 < float((fused - rounded).abs().max() / rounded.abs().max()) <= 2e-2


@pytest.mark.parametrize("kind", ["log_probs", "loss"])
def test_a_weight_without_main_grad_gets_its_gradient_by_autograd(kind):
    model = Model(torch.float32, False, kind, fusion=True)
    model(torch.arange(TOKENS)).backward()
    assert model.head.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["log_probs", "loss"])
def test_main_grad_alone_is_enough(kind):
    """Without Megatron's flag nobody waits for a placeholder."""
    plain, model = (Model(torch.float32, False, kind, fusion=fusion) for fusion in (False, True))
    model.head.main_grad = torch.ones(VOCABULARY, WIDTH)
    plain(torch.arange(TOKENS)).backward()
    model(torch.arange(TOKENS)).backward()
    assert model.head.grad is None
    torch.testing.assert_close(model.head.main_grad, plain.head.grad + 1)
