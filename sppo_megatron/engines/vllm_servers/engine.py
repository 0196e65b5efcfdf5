"""Rollouts by vLLM servers: rank 0 asks them, every rank gets the groups."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from sppo_megatron.cluster.http_client import RequestError, ServerError, wait_for
from sppo_megatron.cluster.server_pool import NoServerLeft
from sppo_megatron.data.rollout_file import read_groups, write_groups
from sppo_megatron.engines.response import make_response
from sppo_megatron.engines.seeds import request_seed
from sppo_megatron.engines.vllm_servers.client import ServerClient
from sppo_megatron.engines.vllm_servers.pool import ServerPool
from sppo_megatron.errors import ConfigError, TrainingError
from sppo_megatron.types import Group, Prompt, Response, SamplingParams

T = TypeVar("T")


class VllmServerEngine:
    """K samples of each prompt from whichever server is free.

    pool.version tells which weights the servers have. unfinished_folder: where the groups go that were finished when
    the last server died; asked again for the same iteration of the same policy, the engine takes them from there.
    group: the ranks that call together (the world where None).
    """

    needs_prompts = True

    def __init__(
        self,
        pool: ServerPool,
        tokenizer: Any | None,
        params: SamplingParams,
        *,
        num_samples_per_prompt: int,
        seed: int,
        unfinished_folder: Path | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._pool = pool
        self._tokenizer = tokenizer
        self._params = params
        self._samples = num_samples_per_prompt
        self._seed = seed
        self._unfinished_folder = unfinished_folder
        self._group = group
        self._background: _Background | None = None

    def check_servers(self, take_weights: bool = True) -> None:
        """Raises ConfigError where no server answers, and where one can't take weights or reports other log-probs.

        take_weights: whether they will be given any.
        """

        def check() -> None:
            healthy = [client for client in self._pool.clients if client.is_healthy()]
            if not healthy:
                urls = ", ".join(client.url for client in self._pool.clients)
                raise ConfigError(f"no rollout server answers at {urls}: start them with `sppo serve --model ...`")
            self._pool.set_alive([client.url for client in healthy])
            for client in healthy:
                if take_weights:
                    _check_weight_receiver(client)
                _check_log_probs(client, self._params)

        self._on_first_rank(check)

    def generate(self, prompts: list[Prompt], iteration: int) -> list[Group]:
        """See RolloutEngine. Raises TrainingError where no server is left."""
        return self._on_first_rank(lambda: self._ask(prompts, iteration))

    def start(self, prompts: list[Prompt], iteration: int) -> None:
        """See AheadEngine."""
        if dist.get_rank(self._group) == 0:
            self._background = _Background(lambda: self._ask(prompts, iteration))

    def finish(self) -> list[Group]:
        """See AheadEngine."""
        background, self._background = self._background, None

        def wait() -> list[Group]:
            assert background is not None, "finish follows start"
            return background.result()

        return self._on_first_rank(wait)

    def probe(self, prompt: Prompt) -> list[tuple[str, Response]]:
        """One response of every server that is alive."""

        def ask() -> list[tuple[str, Response]]:
            found = []
            for client in self._pool.alive:
                [sample] = wait_for(client.complete(prompt.token_ids, self._seed, self._params, 1))
                found.append((client.url, make_response(*sample, self._params, self._tokenizer)))
            return found

        return self._on_first_rank(ask)

    def close(self) -> None:
        """Nothing is held open; what runs in the background ends with the process."""

    def _ask(self, prompts: Sequence[Prompt], iteration: int) -> list[Group]:
        """On rank 0 only, possibly in a thread."""
        version = self._pool.version
        unfinished = self._unfinished(iteration, version)
        groups: dict[int, Group] = {}
        if unfinished is not None and unfinished.exists():
            groups = {group.prompt.index: group for group in read_groups(unfinished)}
        missing = [place for place in range(len(prompts)) if place not in groups]

        async def call(client: ServerClient, place: int) -> Group:
            seed = request_seed(self._seed, iteration, place)
            samples = await client.complete(prompts[place].token_ids, seed, self._params, self._samples)
            responses = [make_response(*sample, self._params, self._tokenizer) for sample in samples]
            for response in responses:
                response.policy_version = version
            return Group(prompts[place], responses)

        try:
            answers = self._pool.run(missing, call)
        except NoServerLeft as error:
            groups |= {missing[i]: group for i, group in error.answers.items()}
            kept = _keep(unfinished, groups) if unfinished is not None and groups else ""
            raise TrainingError(
                f"no rollout server is left: {error}. {len(groups)} of {len(prompts)} groups were finished{kept}. "
                "Start servers and continue (a training run with checkpoint.load=latest)"
            ) from error
        groups |= dict(zip(missing, answers, strict=True))
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)
        return [Group(prompt, groups[place].responses) for place, prompt in enumerate(prompts)]

    def _unfinished(self, iteration: int, version: int) -> Path | None:
        """Where this iteration's groups are kept, if it can't be finished."""
        folder = self._unfinished_folder
        return None if folder is None else folder / f"iteration_{iteration:06d}_version_{version}.jsonl"

    def _on_first_rank(self, work: Callable[[], T]) -> T:
        """work() of rank 0, its result or its error, on every rank."""
        shared: list[Any] = [None, None]
        if dist.get_rank(self._group) == 0:
            try:
                shared[0] = work()
            except (ConfigError, TrainingError) as error:
                shared[1] = error
            except (RequestError, ServerError) as error:
                shared[1] = TrainingError(str(error))
        shared.append([client.url for client in self._pool.alive])
        dist.broadcast_object_list(shared, group=self._group, group_src=0)
        result, failure, alive = shared
        if alive != [client.url for client in self._pool.alive]:
            self._pool.set_alive(alive)
        if failure is not None:
            raise failure
        return result


class _Background:
    """A call in a thread of its own."""

    def __init__(self, work: Callable[[], list[Group]]) -> None:
        self._work = work
        self._result: list[Group] | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except Exception as error:
            self._error = error

    def result(self) -> list[Group]:
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result


def _keep(path: Path, groups: dict[int, Group]) -> str:
    """Writes groups under the places of their prompts."""
    placed = [(Prompt(place, group.prompt.token_ids), group.responses) for place, group in sorted(groups.items())]
    write_groups(path, [Group(prompt, responses) for prompt, responses in placed])
    return f" and are kept in {path}"


def _check_weight_receiver(client: ServerClient) -> None:
    """Raises ConfigError where the server's workers know nothing of the trainer's weights."""
    try:
        client.post("/collective_rpc", {"method": "sppo_report"})
    except (RequestError, ServerError) as error:
        raise ConfigError(
            f"{client.url} can't take the trainer's weights ({error}): start it with `sppo serve`, which gives "
            "vLLM our worker extension and its control endpoints"
        ) from error


def _check_log_probs(client: ServerClient, params: SamplingParams) -> None:
    """Raises ConfigError where the server's log-probs are those of before the temperature and the truncation."""
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
