"""One vLLM server over HTTP: token ids in, token ids and log-probs out, and the control endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import requests

from sppo_megatron.rollout.sampling import SamplingParams

CONTROL_TIMEOUT_S = 30.0


class ServerError(Exception):
    """The server can't be reached, or broke: another one may do better."""


class RequestError(Exception):
    """The server refused what was asked: every other one would, too."""


class ServerClient:
    """url: http://host:port. api_key: sent as a bearer token. model: the served name, None = the only one it serves.

    timeout_s: seconds for one prompt's responses. Methods raise ServerError or RequestError. Threads may share it.
    """

    def __init__(self, url: str, *, api_key: str | None = None, model: str | None = None, timeout_s: float = 600.0):
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._model = model

    def is_healthy(self) -> bool:
        """Whether the server answers and its engine lives."""
        try:
            return requests.get(f"{self.url}/health", timeout=CONTROL_TIMEOUT_S).status_code == 200
        except requests.RequestException:
            return False

    @property
    def model(self) -> str:
        """The served name to ask for."""
        if self._model is None:
            names = [entry["id"] for entry in self.get("/v1/models")["data"]]
            if len(names) != 1:
                raise RequestError(f"{self.url} serves {', '.join(names)}: say which with rollout.server.model")
            self._model = names[0]
        return self._model

    def get(self, path: str) -> Any:
        """The JSON answer of a control endpoint."""
        return self._call("GET", path, None, CONTROL_TIMEOUT_S)

    def post(self, path: str, body: Mapping[str, Any] | None = None, timeout_s: float = CONTROL_TIMEOUT_S) -> Any:
        """The JSON answer of a control endpoint, None where it has none."""
        return self._call("POST", path, dict(body or {}), timeout_s)

    def complete(
        self, prompt: np.ndarray, seed: int, params: SamplingParams, num_samples: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """num_samples continuations of token ids: (token_ids int32, log_probs float32 nats) each.

        Everything that the model's generation config could change is set. Sample k has seed + k.
        """
        body = {
            "model": self.model,
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
        answer = self._call("POST", "/v1/completions", body, self.timeout_s)
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
            "model": self.model,
            "prompt": [0],
            "max_tokens": 1,
            "temperature": temperature,
            "seed": 0,
            "logprobs": 1,
        }
        answer = self._call("POST", "/v1/completions", body, self.timeout_s)
        try:
            return max(answer["choices"][0]["logprobs"]["top_logprobs"][0].values())
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise RequestError(f"{self.url} answered without log-probs ({error!r})") from error

    def _call(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> Any:
        try:
            answer = requests.request(method, self.url + path, json=body, headers=self._headers, timeout=timeout_s)
        except requests.RequestException as error:
            raise ServerError(f"{self.url}{path}: {type(error).__name__}: {error}") from error
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            raise ServerError(f"{self.url}{path} answered {answer.status_code}: {answer.text[:500]}")
        if answer.status_code >= 400:
            hint = (
                " (the API key comes from the variable rollout.server.api_key_env)" if answer.status_code == 401 else ""
            )
            raise RequestError(f"{self.url}{path} answered {answer.status_code}{hint}: {answer.text[:500]}")
        return answer.json() if answer.content else None
