"""Servers that share work: a queue, retries with back-off, and dead servers taken out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from sppo_megatron.cluster.http_client import HttpClient, ServerError, wait_for, with_retries

logger = logging.getLogger(__name__)
Client = TypeVar("Client", bound=HttpClient)
Job = TypeVar("Job")
Answer = TypeVar("Answer")


class NoServerLeft(Exception, Generic[Answer]):
    """answers: what was finished, by the place of its job."""

    def __init__(self, reasons: Sequence[str], answers: dict[int, Answer]) -> None:
        super().__init__("; ".join(reasons))
        self.answers = answers


class Pool(Generic[Client]):
    """concurrency: jobs under way on one server. retries: attempts after the first, backoff_s apart and doubling.

    A server that still fails is not alive any more, until `set_alive` says so again. kind: what the log calls them.
    """

    def __init__(
        self, clients: Sequence[Client], *, concurrency: int, retries: int, backoff_s: float, kind: str = "rollout"
    ) -> None:
        self.clients = list(clients)
        self.alive = list(clients)
        self._concurrency = concurrency
        self._retries = retries
        self._backoff_s = backoff_s
        self._kind = kind

    def set_alive(self, urls: Sequence[str]) -> None:
        """Which servers work from now on."""
        for client in self.alive:
            if client.url not in urls:
                logger.warning("the %s server %s is taken out", self._kind, client.url)
        for client in self.clients:
            if client.url in urls and client not in self.alive:
                logger.warning("the %s server %s is back", self._kind, client.url)
        self.alive = [client for client in self.clients if client.url in urls]

    def run(self, jobs: Sequence[Job], call: Callable[[Client, Job], Awaitable[Answer]]) -> list[Answer]:
        """call(server, job) of each job, on whichever server is free; the answers in the jobs' order.

        call: a coroutine function; it runs on the event loop of `http_client`, so it must not block.
        Raises NoServerLeft, with what is finished, if no server is alive, and what else `call` raises.
        """
        answers: dict[int, Answer] = {}
        dead: dict[str, str] = {}  # url -> why
        try:
            wait_for(self._run(jobs, call, answers, dead))
        finally:
            if dead:
                self.set_alive([client.url for client in self.alive if client.url not in dead])
        if len(answers) < len(jobs):
            raise NoServerLeft(list(dead.values()) or ["no server is alive"], answers)
        return [answers[place] for place in range(len(jobs))]

    async def _run(
        self,
        jobs: Sequence[Job],
        call: Callable[[Client, Job], Awaitable[Answer]],
        answers: dict[int, Answer],
        dead: dict[str, str],
    ) -> None:
        """Fills in `answers`, by the places of the jobs, until all are there or every server is dead."""
        waiting: asyncio.Queue[int] = asyncio.Queue()
        for place in range(len(jobs)):
            waiting.put_nowait(place)
        is_done = asyncio.Event()

        async def work(client: Client) -> None:
            """One of a server's slots: takes jobs until the server is dead, whose jobs go back."""
            while True:
                place = await waiting.get()
                try:
                    if client.url not in dead:
                        answers[place] = await with_retries(
                            lambda: call(client, jobs[place]),  # noqa: B023 (awaited before the next place)
                            self._retries,
                            self._backoff_s,
                            lambda: client.url not in dead,
                        )
                except ServerError as error:
                    dead.setdefault(client.url, str(error))
                if place not in answers:
                    waiting.put_nowait(place)
                    return
                if len(answers) == len(jobs):
                    is_done.set()

        slots = [
            asyncio.ensure_future(work(client))
            for client in self.alive
            for _ in range(min(self._concurrency, len(jobs)))
        ]
        # The slots end by themselves only if every server is dead, or with what `call` raised.
        end = asyncio.ensure_future(is_done.wait())
        all_dead = asyncio.gather(*slots)
        try:
            if slots:
                ends: list[asyncio.Future[Any]] = [all_dead, end]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if all_dead.done():
                all_dead.result()
        finally:
            for task in (end, *slots):
                task.cancel()
            await asyncio.gather(end, *slots, all_dead, return_exceptions=True)
