"""How far this process's own memory grows while a model is converted, both ways, and while a shard is loaded.

    memory.py folder

Prints {"model": its bytes, "largest": those of its largest parameter, "to_megatron", "to_hf", "load": growth in bytes}.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig

from sppo_megatron.cli.convert import main as convert_weights
from sppo_megatron.hf.hf_config import read_architecture
from sppo_megatron.hf.hf_model import open_weights
from sppo_megatron.hf.load import load_parameters
from sppo_megatron.hf.mapping import hf_shapes, parameter_layouts
from sppo_megatron.hf.save import save_hf_folder


def own_memory() -> int:
    """Bytes of anonymous memory: pages of files that are mapped belong to the system's cache."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@contextlib.contextmanager
def growth(results: dict[str, int], name: str) -> Iterator[None]:
    before, done = own_memory(), threading.Event()
    peak = [before]

    def sample() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], own_memory())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        results[name] = max(peak[0], own_memory()) - before


def make_model(folder: Path, num_layers: int) -> LlamaConfig:
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=128,
    )
    architecture = read_architecture(config)
    shapes = hf_shapes(parameter_layouts(architecture, architecture.vocab_size))
    save_hf_folder(folder, ((name, torch.randn(shape)) for name, shape in shapes.items()), config)
    return config


def convert(folder: Path, results: dict[str, int]) -> None:
    hf, megatron, back = (str(folder / name) for name in ("hf", "megatron", "back"))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with growth(results, "to_megatron"):
            assert convert_weights(["--to", "megatron", "--hf-path", hf, "--output", megatron]) == 0
        with growth(results, "to_hf"):
            assert convert_weights(["--to", "hf", "--megatron-path", megatron, "--output", back]) == 0


def load(folder: Path, config: LlamaConfig, results: dict[str, int]) -> None:
    """One of two tensor-parallel ranks."""
    architecture = read_architecture(config)
    layouts = parameter_layouts(architecture, architecture.vocab_size)
    with torch.no_grad():
        shards = {
            name: torch.ones(layout.shard([torch.empty(s, device="meta") for s in layout.shapes], 0, 2).shape)
            for name, layout in layouts.items()
        }
    with growth(results, "load"):
        load_parameters(shards.items(), layouts, open_weights(folder / "hf", architecture), tp_rank=0, tp_size=2)
    assert all((shard != 1).any() for shard in shards.values())


def main() -> None:
    folder = Path(sys.argv[1])
    make_model(folder / "small" / "hf", 1)
    convert(folder / "small", {})  # what is imported and cached once
    config = make_model(folder / "hf", 12)
    shapes = hf_shapes(parameter_layouts(read_architecture(config), config.vocab_size)).values()
    results = {
        "model": sum(4 * torch.Size(shape).numel() for shape in shapes),
        "largest": 4 * 2 * 2048 * 512,
    }
    convert(folder, results)
    load(folder, config, results)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
