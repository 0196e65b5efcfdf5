"""What a server must be able to do, found out before a run begins."""

from __future__ import annotations

from sppo_megatron.cluster.http_client import RequestError, ServerError
from sppo_megatron.engines.vllm_servers.client import ServerClient
from sppo_megatron.errors import ConfigError
from sppo_megatron.types import SamplingParams


def check_weight_receiver(client: ServerClient) -> None:
    """Raises ConfigError if the server's workers know nothing of the trainer's weights."""
    try:
        client.post("/collective_rpc", {"method": "sppo_report"})
    except (RequestError, ServerError) as error:
        raise ConfigError(
            f"{client.url} can't take the trainer's weights ({error}): start it with `sppo serve`, which gives "
            "vLLM our worker extension and its control endpoints"
        ) from error


def check_log_probs(client: ServerClient, params: SamplingParams) -> None:
    """Raises ConfigError if the server's log-probs are those of before the temperature and the truncation."""
    if params.temperature == 1 and params.top_p == 1 and params.top_k == -1:
        return  # before and after are the same
    try:
        cold, hot = (client.top_log_prob(temperature) for temperature in (0.5, 2.0))
    except (RequestError, ServerError) as error:
        raise ConfigError(f"the rollout server does not serve: {error}") from error
    if cold == hot:
        raise ConfigError(
            f"{client.url} returns log-probs from before the temperature is applied: start it with "
            "--logprobs-mode processed_logprobs, as `sppo serve` does"
        )
