"""One vLLM server over HTTP: token ids in, token ids and log-probs out."""

from __future__ import annotations

import numpy as np

from sppo_megatron.cluster.http_client import HttpClient, RequestError, ServerError, wait_for
from sppo_megatron.types import SamplingParams


class ServerClient(HttpClient):
    """timeout_s: seconds for one prompt's responses. Else as `HttpClient`."""

    async def complete(
        self, prompt: np.ndarray, seed: int, params: SamplingParams, num_samples: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """num_samples continuations of token ids: (token_ids int32, log_probs float32 nats) each. A coroutine.

        Everything that the model's generation config could change is set. Sample k has seed + k.
        """
        body = {
            "model": await self.served_model(),
            "prompt": prompt.tolist(),
            "n": 1 if params.temperature == 0 else num_samples,
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed,
            "stop_token_ids": sorted(params.stop_token_ids),
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
        }
        answer = await self.call("POST", "/v1/completions", body, self.timeout_s)
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            samples = [
                (np.array(choice["token_ids"], np.int32), np.array(choice["logprobs"]["token_logprobs"], np.float32))
                for choice in choices
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(
                f"{self.url} answered without token ids and log-probs ({error!r}): it must be vLLM 0.26 or newer"
            ) from error
        if len(samples) != body["n"] or any(len(tokens) != len(log_probs) for tokens, log_probs in samples):
            raise ServerError(f"{self.url} returned {len(samples)} samples of {body['n']}, or log-probs are missing")
        return samples * num_samples if params.temperature == 0 else samples

    def top_log_prob(self, temperature: float) -> float:
        """The largest log-prob after a fixed prompt, as the server reports it at this temperature; nats."""
        body = {
            "model": wait_for(self.served_model()),
            "prompt": [0],
            "max_tokens": 1,
            "temperature": temperature,
            "seed": 0,
            "logprobs": 1,
        }
        answer = self.post("/v1/completions", body, self.timeout_s)
        try:
            return max(answer["choices"][0]["logprobs"]["top_logprobs"][0].values())
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise RequestError(f"{self.url} answered without log-probs ({error!r})") from error
