"""Llama 2 and 3.x."""

from __future__ import annotations

from sppo_megatron.hf.families.decoder import read_decoder
from sppo_megatron.hf.families.family import Family
from sppo_megatron.hf.families.fields import ConfigFields

LLAMA = Family(read_decoder, ConfigFields(only={"attention_bias": (False,), "mlp_bias": (False,)}))
