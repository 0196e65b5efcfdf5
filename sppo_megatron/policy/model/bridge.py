"""A dense model of a family that `hf` doesn't map, by NVIDIA's megatron-bridge if that is installed.

The Bridge's provider says what the model is, and its mapping moves the weights; everything else is the same code as for
our own families. The layers are the provider's own with Transformer Engine, without it those of `layer_spec`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from sppo_megatron.cluster.consensus import of_all_ranks
from sppo_megatron.config import Config
from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.families import FAMILIES
from sppo_megatron.hf.hf_checkpoint import SafetensorsFolder
from sppo_megatron.hf.mapping import EMBEDDING, OUTPUT_LAYER
from sppo_megatron.parallel.fused_kernels import has_transformer_engine
from sppo_megatron.policy.model.build import build_stages, named_parameters, run_fields, unwrap
from sppo_megatron.policy.model.layer_spec import decoder_spec


class BridgeModel:
    """A `ModelSource`."""

    def __init__(self, folder: Path, hf_config: Any):
        """folder: where the weights are, read when they are asked for.

        Raises ConfigError if megatron-bridge is missing, or the model can't be trained through it.
        """
        self._folder = folder
        self._hf_config = hf_config
        self._family = hf_config.model_type
        self._bridge = _open_bridge(hf_config)
        self._provider = self._bridge.to_megatron_provider(load_weights=False)
        found = _unsupported(self._provider, hf_config)
        if found:
            raise ConfigError(f"the {self._family} model has {', '.join(found)}: not supported through megatron-bridge")

    @property
    def vocab_size(self) -> int:
        return self._provider.vocab_size

    @property
    def longest_sequence(self) -> None:
        return None

    def layout_sizes(self) -> dict[str, int | None]:
        p = self._provider
        return {
            "num_layers": p.num_layers,
            "num_attention_heads": p.num_attention_heads,
            "num_query_groups": p.num_query_groups or p.num_attention_heads,
            "ffn_hidden_size": p.ffn_hidden_size,
        }

    def description(self) -> dict[str, Any]:
        p = self._provider
        sizes = {"vocab_size": p.vocab_size, "hidden_size": p.hidden_size, "head_dim": p.kv_channels}
        return {"family": self._family, **self.layout_sizes(), **sizes}

    def build(self, run: Config, groups: ProcessGroupCollection) -> tuple[TransformerConfig, list[nn.Module]]:
        if run.precision.fp8 is not None:
            raise ConfigError(f"precision.fp8 with a {self._family} model: not supported through megatron-bridge")
        provider = self._provider
        fields = run_fields(run.model, run.parallelism, run.precision) | {
            "should_pad_vocab": True,
            "make_vocab_size_divisible_by": 1,  # times tensor_model_parallel_size: the Bridge fills no other padding
            "deallocate_pipeline_outputs": False,
            "_pg_collection": groups,
        }
        if not has_transformer_engine():
            rank = groups.pp.rank()
            fields["transformer_layer_spec"] = lambda config, vp_stage: decoder_spec(config, vp_stage, rank)
            fields["attention_backend"] = AttnBackend.auto
        for name, value in fields.items():
            setattr(provider, name, value)
        provider.finalize()
        chunks = build_stages(provider, groups, provider.provide)
        self._check_built([unwrap(chunk) for chunk in chunks], groups)
        return provider, chunks

    def load_weights(self, chunks: list[nn.Module], groups: ProcessGroupCollection) -> None:
        models = [unwrap(chunk) for chunk in chunks]
        self._check_names(models, groups)
        self._bridge.load_hf_weights(models, hf_path=self._folder)

    @torch.no_grad()
    def export_weights(self, chunks: list[nn.Module], groups: ProcessGroupCollection) -> Iterator[tuple[str, Tensor]]:
        models = [unwrap(chunk) for chunk in chunks]
        hf_names = self._hf_names(models)
        names = {name for of_parameter in hf_names.values() for name in of_parameter}
        padded = {*hf_names[EMBEDDING], *hf_names.get(OUTPUT_LAYER, ())}
        for name, tensor in self._bridge.export_hf_weights(models, show_progress=False):
            if name in names:  # not a tied output layer, which is the embedding once more
                # Some are the parameters themselves: a copy is the caller's own.
                yield name, (tensor[: self.vocab_size] if name in padded else tensor).clone()

    def _hf_names(self, models: list[GPTModel]) -> dict[str, list[str]]:
        """The tensors of each parameter of the whole model; a tied output layer is left out. Collective."""
        # What AutoBridge.get_conversion_tasks calls, which insists on a folder with weights.
        tasks = self._bridge._model_bridge.build_conversion_tasks(self._hf_config, models)
        hf_params = {task.global_param_name: task.mapping.hf_param for task in tasks if task is not None}
        return {name: [hf] if isinstance(hf, str) else list(hf.values()) for name, hf in hf_params.items()}

    def _check_built(self, models: list[GPTModel], groups: ProcessGroupCollection) -> None:
        """Log-probs are taken from hidden states and the output layer's weight: logits must be their plain product.

        Collective: only the last stage knows the output layer, and no stage may go on alone.
        """
        plain = all(type(model) is GPTModel for model in models) and (
            not models[-1].post_process or type(models[-1].output_layer) is ColumnParallelLinear
        )
        if not all(of_all_ranks(plain, groups.pp)):
            raise ConfigError(
                f"the {self._family} model of megatron-bridge is no plain decoder whose logits are a product of hidden "
                "states and weights (it caps or scales them, or takes more than text): not supported"
            )

    def _check_names(self, models: list[GPTModel], groups: ProcessGroupCollection) -> None:
        """The Bridge skips what it finds no partner for; here that is an error, the same on every rank."""
        hf_names = self._hf_names(models)
        expected = {name for names in hf_names.values() for name in names}
        stored = SafetensorsFolder(self._folder).shapes()
        found = {name for name in stored if not name.endswith(".rotary_emb.inv_freq")}
        of_stages = of_all_ranks([name for name, _ in named_parameters(models)], groups.pp)
        parameters = {name for of_stage in of_stages for name in of_stage}
        if self._provider.share_embeddings_and_output_weights:
            found.discard("lm_head.weight")
            parameters.discard(OUTPUT_LAYER)
        problems = {
            "missing": expected - found,
            "unexpected": found - expected,
            "parameters without a mapping": parameters - hf_names.keys(),
        }
        texts = [f"{title}: {', '.join(sorted(names)[:10])}" for title, names in problems.items() if names]
        if texts:
            raise ConfigError(f"the checkpoint does not fit megatron-bridge's {self._family}: {'; '.join(texts)}")


def _open_bridge(hf_config: Any) -> Any:
    ours = f"model family {hf_config.model_type!r} is not among this project's own ({', '.join(FAMILIES)})"
    logging.getLogger("megatron.bridge").setLevel(logging.ERROR)  # what it skips is checked here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from megatron.bridge import AutoBridge
            from megatron.bridge.models.conversion.param_mapping import AutoMapping
    except ImportError as error:
        raise ConfigError(
            f"{ours}; others are built by megatron-bridge, which can't be imported ({error}): on Python 3.12 "
            "pip install --no-deps megatron-bridge, and Transformer Engine, which it imports"
        ) from error
    AutoMapping.register_module_type("TorchNorm", "replicated")
    try:
        return AutoBridge.from_hf_config(hf_config)
    except ValueError as error:
        known = ", ".join(AutoBridge.list_supported_models())
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{ours}, and megatron-bridge can't open it ({reason}); it knows {known}") from error


def _unsupported(provider: Any, hf_config: Any) -> list[str]:
    """What the model has that the rest of the code can't train or, without Transformer Engine, can't compute."""
    from megatron.bridge.models.gpt_provider import GPTModelProvider, default_layer_spec

    if not isinstance(provider, GPTModelProvider):
        return ["more than a text decoder"]
    rope = getattr(hf_config, "rope_parameters", None) or {}
    is_tied = getattr(hf_config, "tie_word_embeddings", True)
    features = {
        "a mixture of experts": provider.num_moe_experts is not None,
        "multi-latent attention": provider.multi_latent_attention,
        "layers that predict more than one token": bool(provider.mtp_num_layers),
        "no rotary positions": provider.position_embedding_type != "rope",
        "an output layer apart from the embedding": provider.share_embeddings_and_output_weights and not is_tied,
        "capped logits": bool(getattr(provider, "final_logit_softcapping", None)),
        "scaled rotary positions": rope.get("rope_type", "default") != "default",
    }
    if not has_transformer_engine():
        features |= {
            "layers that need CUDA and Transformer Engine": provider.transformer_layer_spec is not default_layer_spec,
            "sliding-window attention, which needs CUDA and Transformer Engine": provider.window_size is not None,
            "attention sinks, which need CUDA and Transformer Engine": provider.softmax_type != "vanilla",
        }
    return [name for name, present in features.items() if present]
