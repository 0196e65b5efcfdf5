"""What happens to each field of a config.json: it is read, it is harmless, or the model is refused by its name.

A field that nobody knows may change the maths, so it is refused as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sppo_megatron.errors import ConfigError


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Read for every family.
READ = names(
    """model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim max_position_embeddings rms_norm_eps initializer_range tie_word_embeddings rope_parameters eos_token_id
    hidden_act"""
)
# What the log-probs of tokens don't depend on: names, labels, outputs asked for, generation, dropout and noise of
# training (off here: a policy must be a function), and what an older format said and transformers reads elsewhere.
HARMLESS = names(
    """architectures auto_map transformers_version dtype torch_dtype id2label label2id problem_type return_dict
    output_attentions output_hidden_states output_router_logits chunk_size_feed_forward is_encoder_decoder is_decoder
    add_cross_attention cross_attention_hidden_size use_cache cache_implementation pad_token_id bos_token_id
    sep_token_id unk_token_id attention_dropout hidden_dropout embedding_dropout resid_pdrop embd_pdrop pretraining_tp
    router_jitter_noise rope_theta rope_scaling temperature top_p top_k do_sample max_length min_length num_beams
    repetition_penalty length_penalty no_repeat_ngram_size task_specific_params finetuning_task tokenizer_class
    prefix bos_token eos_token unsloth_fixed unsloth_version max_new_tokens tf_legacy_loss torchscript use_bfloat16
    pruned_heads tie_encoder_decoder"""
)


@dataclass(frozen=True)
class ConfigFields:
    """A family's own fields. read: what it takes them from. harmless: they change nothing here.

    only: fields whose other values are refused.
    """

    read: frozenset[str] = frozenset()
    harmless: frozenset[str] = frozenset()
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def check_fields(hf_config: Any, fields: ConfigFields) -> None:
    """Raises ConfigError that names every field that isn't supported."""
    values = {name: value for name, value in hf_config.to_dict().items() if not name.startswith("_")}
    only = {"hidden_act": ("silu",), "quantization_config": (None,)} | dict(fields.only)
    only = {name: allowed for name, allowed in only.items() if name not in fields.read}
    refused = [
        name if allowed in ((False,), (None,)) or value is True else _with_allowed(name, value, allowed)
        for name, allowed in only.items()
        if (value := values.get(name)) not in allowed and name in values
    ]
    if refused:
        raise ConfigError(f"the {hf_config.model_type} config uses {', '.join(refused)}, which is not supported")
    unknown = sorted(values.keys() - READ - HARMLESS - fields.read - fields.harmless - only.keys())
    if unknown:
        raise ConfigError(
            f"the {hf_config.model_type} config has fields that are not known here and may change the model: "
            f"{', '.join(unknown)}. Remove from config.json what does not"
        )


def _with_allowed(name: str, value: Any, allowed: tuple[Any, ...]) -> str:
    return f"{name}={value!r} (only {' or '.join(map(repr, allowed))})"
