"""Servers that share work: a queue, retries with back-off, and dead servers taken out."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from sppo_megatron.cluster.http_client import HttpClient, ServerError

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

    def run(self, jobs: Sequence[Job], call: Callable[[Client, Job], Answer]) -> list[Answer]:
        """call(server, job) of each job, on whichever server is free; the answers in the jobs' order.

        Raises NoServerLeft, with what is finished, where no server is alive, and what else `call` raises.
        """
        run = _Run(jobs, call, self._retries, self._backoff_s)
        threads = [
            threading.Thread(target=run.work, args=(client,), daemon=True)
            for client in self.alive
            for _ in range(min(self._concurrency, len(jobs)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if run.dead:
            self.set_alive([client.url for client in self.alive if client.url not in run.dead])
        if run.refused is not None:
            raise run.refused
        if len(run.answers) < len(jobs):
            raise NoServerLeft(list(run.dead.values()) or ["no server is alive"], run.answers)
        return [run.answers[place] for place in range(len(jobs))]


class _Run(Generic[Client, Job, Answer]):
    """One pass over the jobs. Every field is guarded by the condition's lock."""

    def __init__(
        self, jobs: Sequence[Job], call: Callable[[Client, Job], Answer], retries: int, backoff_s: float
    ) -> None:
        self.answers: dict[int, Answer] = {}
        self.dead: dict[str, str] = {}  # url -> why
        self.refused: Exception | None = None
        self._jobs = jobs
        self._call = call
        self._retries = retries
        self._backoff_s = backoff_s
        self._waiting = deque(range(len(jobs)))
        self._changed = threading.Condition()

    def work(self, client: Client) -> None:
        """A thread's life: jobs until all are done, or this server is dead. A dead server's jobs go back."""
        while (place := self._take(client)) is not None:
            try:
                answer = self._try(client, self._jobs[place])
            except ServerError as error:
                with self._changed:
                    self._waiting.appendleft(place)
                    self.dead.setdefault(client.url, str(error))
                    self._changed.notify_all()
                return
            except Exception as error:  # refused, or a mistake in `call`; a thread that just ended would stop the rest
                with self._changed:
                    self.refused = error
                    self._changed.notify_all()
                return
            with self._changed:
                self.answers[place] = answer
                self._changed.notify_all()

    def _take(self, client: Client) -> int | None:
        """The next job. Waits while others are under way that may come back; None where this thread is done."""
        with self._changed:
            while True:
                if client.url in self.dead or self.refused is not None or len(self.answers) == len(self._jobs):
                    return None
                if self._waiting:
                    return self._waiting.popleft()
                self._changed.wait()

    def _try(self, client: Client, job: Job) -> Answer:
        for attempt in range(self._retries + 1):
            try:
                return self._call(client, job)
            except ServerError as error:
                if attempt == self._retries or client.url in self.dead:
                    raise
                logger.warning("%s; trying again", error)
                time.sleep(self._backoff_s * 2**attempt)
        raise AssertionError("unreachable: the last attempt returned or raised")
