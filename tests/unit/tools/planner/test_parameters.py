"""Parameters of ranks: the published totals of whole models, and shards that add up to them."""

from __future__ import annotations

import pytest

from sppo_megatron.config import ParallelismConfig
from sppo_planner.parallel_sizes import ParallelSizes

# "parameters" in the safetensors metadata of the models' hub pages
PUBLISHED = {
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-32B": 32_763_876_352,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Qwen3-30B-A3B": 30_532_122_624,
}


def sizes(world: int, **parallelism) -> ParallelSizes:
    names = {"tp": "tensor", "pp": "pipeline", "vpp": "virtual_pipeline", "ep": "expert"}
    given = {f"{names[key]}_model_parallel_size": value for key, value in parallelism.items() if key in names}
    if "etp" in parallelism:
        given["expert_tensor_parallel_size"] = parallelism["etp"]
    return ParallelSizes.of(ParallelismConfig(**given), world)


@pytest.mark.parametrize("model", PUBLISHED)
def test_totals_are_the_published_ones(make_job, model):
    table = make_job(model=model).table
    assert table.total == PUBLISHED[model]
    (chunk,) = table.of_stage(sizes(1), 0)
    padding = (table.padded_vocab_size(1) - table.architecture.vocab_size) * table.architecture.hidden_size
    copies = 1 if table.architecture.tied_embeddings else 2
    assert sum(parameter.elements for parameter in chunk) == PUBLISHED[model] + copies * padding


def test_stages_and_virtual_stages_share_the_layers(make_job):
    table, layout = make_job(model="Qwen2.5-7B").table, sizes(4, pp=2, vpp=7)
    stages = [table.of_stage(layout, stage) for stage in range(2)]
    assert [len(chunks) for chunks in stages] == [7, 7]
    elements = [[sum(each.elements for each in chunk) for chunk in chunks] for chunks in stages]
    assert sum(map(sum, elements)) == table.total
    assert len(set(elements[0][1:])) == 1 and elements[0][0] > elements[0][1]  # the embedding is in the first chunk
    assert elements[1][-1] > elements[1][0] == elements[0][1]  # the head in the last


def test_a_tied_embedding_is_on_both_ends_of_a_pipeline(make_job):
    table = make_job(model="Qwen2.5-1.5B").table
    first, last = (table.of_stage(sizes(2, pp=2), stage)[0] for stage in range(2))
    shared = [[each.elements for each in stage if each.is_shared_embedding] for stage in (first, last)]
    assert shared == [[151936 * 1536], [151936 * 1536]]
    assert not any(each.is_shared_embedding for each in table.of_stage(sizes(1), 0)[0])


def test_expert_ranks_share_the_experts_and_nothing_else(make_job):
    table, layout = make_job(model="Qwen3-30B-A3B").table, sizes(8, tp=4, ep=8, etp=1)
    of_ranks = [table.of_stage(layout, 0, expert_rank)[0] for expert_rank in range(8)]
    experts = sum(each.elements for rank in of_ranks for each in rank if each.is_expert)
    assert experts == 48 * 128 * 3 * 2048 * 768
    others = {sum(each.elements for each in rank if not each.is_expert) for rank in of_ranks}
    assert len(others) == 1


def test_tensor_parallel_shards(make_job):
    """By hand: one layer of Llama-3.1-8B on one of eight ranks."""
    table = make_job(model="Llama-3.1-8B").table
    layer = table.of_stage(sizes(256, tp=8, pp=32), 1)[0]
    assert [(each.kind.removeprefix("decoder.layers.*."), each.elements) for each in layer] == [
        ("input_layernorm.weight", 4096),
        ("self_attention.linear_proj.weight", 4096 * 4096 // 8),
        ("self_attention.linear_qkv.weight", (4096 + 2 * 1024) * 4096 // 8),
        ("pre_mlp_layernorm.weight", 4096),
        ("mlp.linear_fc1.weight", 2 * 14336 * 4096 // 8),
        ("mlp.linear_fc2.weight", 14336 * 4096 // 8),
    ]


def test_active_elements_of_a_mixture(make_job):
    """3.3B of Qwen3-30B-A3B's parameters are active for a token, embedding and head counted."""
    table = make_job(model="Qwen3-30B-A3B").table
    active = table.active_matrix_elements + 2 * 151936 * 2048
    assert 3.3e9 < active < 3.4e9
    dense = make_job(model="Llama-3.1-8B").table
    assert dense.active_matrix_elements == 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336)
