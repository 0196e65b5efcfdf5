"""The shapes of well-known models, from their published config.json, so that planning needs no network."""

from __future__ import annotations

from pathlib import Path

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.hf_config import load_hf_config, read_architecture
from sppo_megatron.hf.hf_folder import resolve_hf_folder

_FOLDER = Path(__file__).parent / "shapes"
_SAME_SHAPE = ("-instruct", "-base", "-it")  # endings of hub ids whose models have the shape of the one without


def shipped_models() -> list[str]:
    return sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))


def find_architecture(model: str) -> Architecture:
    """model: a folder with config.json, a GGUF file, name or hub id of a shipped shape, or a hub id, which is fetched.

    Raises ConfigError that says what can be given.
    """
    if not Path(model).is_dir():
        name = model.rpartition("/")[2].lower()
        for ending in _SAME_SHAPE:
            name = name.removesuffix(ending)
        for shipped in shipped_models():
            if shipped.lower() == name:
                return read_architecture(load_hf_config(str(_FOLDER / shipped)))
    try:
        return read_architecture(load_hf_config(str(resolve_hf_folder(model)) if Path(model).exists() else model))
    except ValueError as error:
        raise ConfigError(f"{error}; shapes that need no network: {', '.join(shipped_models())}") from error
