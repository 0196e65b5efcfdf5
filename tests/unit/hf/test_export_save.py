"""Out of the trainer: streamed tensors, and folders that transformers loads."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from sppo_megatron.hf.export import ExportGroups, ExportPlan, buckets, stream_hf_tensors
from sppo_megatron.hf.hf_checkpoint import SafetensorsFolder
from sppo_megatron.hf.hf_config import read_architecture
from sppo_megatron.hf.mapping import FUSED_NORM_NAMES, parameter_layouts
from sppo_megatron.hf.save import save_hf_folder
from sppo_megatron.hf.weight_files import INDEX_FILE, SINGLE_FILE


@pytest.fixture(scope="module")
def world():
    """A process group of this process alone; tests/distributed has the larger ones."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def megatron_parameters(config, stored):
    architecture = read_architecture(config)
    layouts = parameter_layouts(architecture, architecture.padded_vocab_size(8, 1))
    parameters = {
        name: layout.shard([stored[hf_name] for hf_name in layout.hf_names], 0, 1) for name, layout in layouts.items()
    }
    return parameters, layouts


def stream(parameters, layouts, world):
    plan = ExportPlan(parameters, layouts, ExportGroups(world, world))
    return stream_hf_tensors(parameters, plan, torch.device("cpu"))


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


# ------------------------------------------------------------------------------------------------ the stream


def test_the_stream_is_the_model_in_its_order(hf_model, stored, world):
    parameters, layouts = megatron_parameters(hf_model.config, stored)
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in reversed(parameters.items())}
    tensors = list(stream(parameters, layouts, world))
    assert [name for name, _ in tensors] == [name for layout in layouts.values() for name in layout.hf_names]
    assert same_bits(dict(tensors), stored)
    assert not any(tensor.requires_grad for _, tensor in tensors)


def test_streamed_tensors_are_the_callers_own(hf_model, stored, world):
    parameters, layouts = megatron_parameters(hf_model.config, stored)
    before = {name: tensor.clone() for name, tensor in parameters.items()}
    for _, tensor in stream(parameters, layouts, world):
        tensor.fill_(7)
    assert same_bits(parameters, before)


def test_names_fused_by_transformer_engine_are_found(hf_model, stored, world):
    parameters, layouts = megatron_parameters(hf_model.config, stored)
    local_to_fused = {local: fused for fused, local in FUSED_NORM_NAMES.items()}
    renamed = {}
    for name, tensor in parameters.items():
        local = next((ending for ending in local_to_fused if name.endswith(ending)), None)
        renamed[name.removesuffix(local) + local_to_fused[local] if local else name] = tensor
    assert renamed.keys() != parameters.keys()
    assert same_bits(dict(stream(renamed, layouts, world)), stored)


def test_a_parameter_that_no_stage_holds(hf_model, stored, world):
    parameters, layouts = megatron_parameters(hf_model.config, stored)
    del parameters["decoder.final_layernorm.weight"]
    with pytest.raises(RuntimeError, match=r"no pipeline stage holds decoder\.final_layernorm\.weight"):
        list(stream(parameters, layouts, world))


# ------------------------------------------------------------------------------------------------ the folder


@pytest.mark.parametrize("max_file_bytes", [1 << 30, 4000])
def test_transformers_loads_the_same_weights(hf_model, stored, world, tmp_path, max_file_bytes):
    """Through the stream, whose tensors may share memory, and back by transformers."""
    folder = tmp_path / "deep" / "hf"
    parameters, layouts = megatron_parameters(hf_model.config, stored)
    save_hf_folder(folder, stream(parameters, layouts, world), hf_model.config, max_file_bytes=max_file_bytes)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert same_bits(dict(loaded.state_dict()), dict(hf_model.state_dict()))
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(loaded(ids).logits, hf_model(ids).logits)
    assert AutoConfig.from_pretrained(folder).to_dict().keys() >= {"architectures", "rope_parameters"}


def numbered(count: int, rows: int = 10, dtype=torch.float32):
    for i in range(count):
        yield f"t{i}", torch.full((rows,), i, dtype=dtype)


def read_all(folder) -> dict[str, torch.Tensor]:
    source = SafetensorsFolder(folder)
    return {name: source.source(name)[:] for name in source.shapes()}


def test_files_stay_below_the_limit(make_config, tmp_path):
    """40 bytes a tensor: two go into a file of at most 100."""
    save_hf_folder(tmp_path / "hf", numbered(5), make_config("llama"), max_file_bytes=100)
    index = json.loads((tmp_path / "hf" / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == 200
    expected = [f"model-0000{i}-of-00003.safetensors" for i in (1, 1, 2, 2, 3)]
    assert index["weight_map"] == {f"t{i}": name for i, name in enumerate(expected)}
    weights = {path.name for path in (tmp_path / "hf").glob("*.safetensors")}
    assert weights == set(expected)
    for name in weights:
        with safe_open(tmp_path / "hf" / name, framework="pt") as file:
            assert set(file.keys()) == {key for key, value in index["weight_map"].items() if value == name}
            assert file.metadata() == {"format": "pt"}
    assert same_bits(read_all(tmp_path / "hf"), dict(numbered(5)))


def test_exactly_the_limit_still_fits(make_config, tmp_path):
    save_hf_folder(tmp_path / "hf", numbered(4), make_config("llama"), max_file_bytes=80)
    assert len(list((tmp_path / "hf").glob("model-*-of-00002.safetensors"))) == 2


def test_a_tensor_above_the_limit_gets_its_own_file(make_config, tmp_path):
    save_hf_folder(tmp_path / "hf", numbered(3), make_config("llama"), max_file_bytes=1)
    assert len(list((tmp_path / "hf").glob("model-*-of-00003.safetensors"))) == 3


def test_one_file_has_no_index(make_config, tmp_path):
    save_hf_folder(tmp_path / "hf", numbered(3, dtype=torch.bfloat16), make_config("llama"))
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert SINGLE_FILE in names and INDEX_FILE not in names
    assert same_bits(read_all(tmp_path / "hf"), dict(numbered(3, dtype=torch.bfloat16)))


def test_views_of_one_storage_are_saved_whole(make_config, tmp_path):
    table = torch.arange(24.0).view(6, 4)
    parts = {"rows": table[:3], "columns": table[:, 1:3], "rest": table[3:]}
    save_hf_folder(tmp_path / "hf", iter(parts.items()), make_config("llama"))
    assert same_bits(read_all(tmp_path / "hf"), parts)


def test_the_old_folder_is_replaced_as_a_whole(make_config, tmp_path):
    folder = tmp_path / "hf"
    save_hf_folder(folder, numbered(5), make_config("llama"), max_file_bytes=100)
    save_hf_folder(folder, numbered(2), make_config("qwen3"))
    assert {path.name for path in folder.iterdir()} >= {"config.json", SINGLE_FILE}
    assert not list(folder.glob("model-*"))
    assert AutoConfig.from_pretrained(folder).model_type == "qwen3"
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_an_interrupted_write_leaves_the_old_folder(make_config, tmp_path):
    def broken():
        yield from numbered(3)
        raise KeyboardInterrupt

    folder = tmp_path / "hf"
    save_hf_folder(folder, numbered(5), make_config("llama"), max_file_bytes=100)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        save_hf_folder(folder, broken(), make_config("qwen3"), max_file_bytes=100)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    save_hf_folder(folder, numbered(1), make_config("qwen3"))  # and the next one is not disturbed by what was left
    assert same_bits(read_all(folder), dict(numbered(1)))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_tokenizer_and_generation_config_come_along_as_they_were(make_config, tmp_path):
    """Also a generation config that transformers reads and refuses to write: greedy, and yet a temperature."""
    model = Tokenizer(WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")
    folder = tmp_path / "hf"
    source = tmp_path / "source"
    tokenizer.save_pretrained(source)
    (source / "generation_config.json").write_text('{"do_sample": false,\n "temperature": 0.9, "eos_token_id": [2, 9]}')
    (source / "model.safetensors").write_bytes(b"not to be copied")
    with pytest.raises(ValueError, match="temperature"):
        GenerationConfig.from_pretrained(source).save_pretrained(tmp_path)
    save_hf_folder(folder, numbered(1), make_config("llama"), source)
    for path in source.iterdir():
        assert (path.read_bytes() == (folder / path.name).read_bytes()) == (path.name != "model.safetensors")
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("a") == 1
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [2, 9]


def test_buckets_keep_the_order_and_the_limit():
    sizes = [10, 20, 90, 5, 200, 1, 1]
    pairs = [(str(i), torch.zeros(size, dtype=torch.uint8)) for i, size in enumerate(sizes)]
    found = list(buckets(iter(pairs), 100))
    assert [[tensor.numel() for _, tensor in bucket] for bucket in found] == [[10, 20], [90, 5], [200], [1, 1]]
    assert [name for bucket in found for name, _ in bucket] == [name for name, _ in pairs]
