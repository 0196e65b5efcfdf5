"""One server over HTTP: JSON in, JSON out, and whether a failure is the server's or the request's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import requests

CONTROL_TIMEOUT_S = 30.0


class ServerError(Exception):
    """The server can't be reached, or broke: another one may do better."""


class RequestError(Exception):
    """The server refused what was asked: every other one would, too."""


class HttpClient:
    """url: http://host:port. api_key: sent as a bearer token. model: the served name, None = the only one it serves.

    timeout_s: seconds for one request. settings: the configuration group that error messages name.
    Methods raise ServerError or RequestError. Threads may share it.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = 600.0,
        settings: str = "rollout.server",
    ) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._model = model
        self._settings = settings

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
                raise RequestError(f"{self.url} serves {', '.join(names)}: say which with {self._settings}.model")
            self._model = names[0]
        return self._model

    def get(self, path: str) -> Any:
        """The JSON answer of a control endpoint."""
        return self._call("GET", path, None, CONTROL_TIMEOUT_S)

    def post(self, path: str, body: Mapping[str, Any] | None = None, timeout_s: float = CONTROL_TIMEOUT_S) -> Any:
        """The JSON answer of an endpoint, None where it has none."""
        return self._call("POST", path, dict(body or {}), timeout_s)

    def _call(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> Any:
        try:
            answer = requests.request(method, self.url + path, json=body, headers=self._headers, timeout=timeout_s)
        except requests.RequestException as error:
            raise ServerError(f"{self.url}{path}: {type(error).__name__}: {error}") from error
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            raise ServerError(f"{self.url}{path} answered {answer.status_code}: {answer.text[:500]}")
        if answer.status_code >= 400:
            hint = (
                f" (the API key comes from the variable {self._settings}.api_key_env)"
                if answer.status_code == 401
                else ""
            )
            raise RequestError(f"{self.url}{path} answered {answer.status_code}{hint}: {answer.text[:500]}")
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError as error:
            raise ServerError(f"{self.url}{path} answered what isn't JSON: {answer.text[:500]}") from error
