"""The text of models that take images, too: their language model is a family of its own, with a config inside theirs.

Nothing else of such a model is trained: what sees is kept as it is and written to exports.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.families.family import Family
from sppo_megatron.hf.families.fields import ConfigFields, check_fields, names

PREFIX = "language_model."


def text_part(inner: dict[str, Family], fields: frozenset[str]) -> Family:
    """A family of models whose text_config is of one of the families `inner`. fields: of the whole's config.

    Tensors of the text have their family's names after `language_model.`, as published.
    """

    def read(hf_config: Any) -> Architecture:
        text = hf_config.text_config
        if text.model_type not in inner:
            raise ConfigError(f"the text of the {hf_config.model_type} config is of {text.model_type}: not supported")
        if text.tie_word_embeddings != hf_config.tie_word_embeddings:
            raise ConfigError(
                f"the {hf_config.model_type} config says tie_word_embeddings={hf_config.tie_word_embeddings} and "
                f"{text.tie_word_embeddings} in text_config, and readers differ in which one counts: make them agree"
            )
        family = inner[text.model_type]
        check_fields(text, family.fields)
        return replace(family.read(text), prefix=PREFIX)

    return Family(read, ConfigFields(read=names("text_config"), harmless=names("vision_config") | fields))
