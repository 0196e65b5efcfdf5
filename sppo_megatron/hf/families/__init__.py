"""The supported model families, by the config's model_type. A family is one entry; see `family.Family`."""

from __future__ import annotations

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.families.deepseek import DEEPSEEK_V3
from sppo_megatron.hf.families.family import Family
from sppo_megatron.hf.families.fields import names
from sppo_megatron.hf.families.gemma import GEMMA3_TEXT
from sppo_megatron.hf.families.glm import GLM4_MOE
from sppo_megatron.hf.families.gpt_oss import GPT_OSS
from sppo_megatron.hf.families.llama import LLAMA
from sppo_megatron.hf.families.mistral import MINISTRAL3, MISTRAL, MIXTRAL
from sppo_megatron.hf.families.qwen import QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE
from sppo_megatron.hf.families.text_part import text_part

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "ministral3": MINISTRAL3,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "mixtral": MIXTRAL,
    "qwen2_moe": QWEN2_MOE,
    "qwen3_moe": QWEN3_MOE,
    "gemma3_text": GEMMA3_TEXT,
    "glm4_moe": GLM4_MOE,
    "deepseek_v3": DEEPSEEK_V3,
    "gpt_oss": GPT_OSS,
    "mistral3": text_part(
        {"mistral": MISTRAL, "ministral3": MINISTRAL3},
        names(
            """image_token_index image_token_id projector_hidden_act vision_feature_layer multimodal_projector_bias
            spatial_merge_size"""
        ),
    ),
    "kimi_k25": text_part(
        {"deepseek_v3": DEEPSEEK_V3},
        names(
            """image_token_id video_token_id vision_start_token_id vision_end_token_id projection_hidden_size
            projection_layer_norm_eps"""
        ),
    ),
}
# Model types that differ from a family's in nothing but the name: read, and exported, as the family's own.
ALSO_CALLED = {"kimi_k2": "deepseek_v3"}


def family_of(model_type: str) -> Family:
    """Raises ConfigError that says what is supported."""
    if model_type not in FAMILIES:
        raise ConfigError(
            f"model family {model_type!r} is not supported; supported are {', '.join(FAMILIES)} (docs/models.md; "
            "CONTRIBUTING.md says how to add one)"
        )
    return FAMILIES[model_type]
