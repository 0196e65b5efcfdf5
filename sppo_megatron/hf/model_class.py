"""The transformers class of a supported model: a language model, or a model with one inside."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)


def model_class_name(model_type: str) -> str:
    """Raises KeyError for a model_type that is neither."""
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type]


def model_class(model_type: str) -> Any:
    return getattr(transformers, model_class_name(model_type))
