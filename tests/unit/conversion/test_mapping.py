"""The table against the state dicts of real Hugging Face models."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from sppo_megatron.conversion.architecture import read_architecture
from sppo_megatron.conversion.mapping import canonical_name, hf_shapes, parameter_layouts

spec = importlib.util.spec_from_file_location("conversion_models", Path(__file__).parent / "models.py")
models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(models)
