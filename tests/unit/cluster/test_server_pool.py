from __future__ import annotations

import asyncio

import pytest

from sppo_megatron.cluster.http_client import HttpClient, RequestError, ServerError
from sppo_megatron.cluster.server_pool import NoServerLeft, Pool


def make_pool(count: int = 2, **changes) -> Pool:
    clients = [HttpClient(f"http://127.0.0.1:{9000 + i}") for i in range(count)]
    return Pool(clients, **({"concurrency": 4, "retries": 2, "backoff_s": 0.001} | changes))


def test_answers_come_in_the_order_of_the_jobs():
    async def call(client, job):
        await asyncio.sleep(0.02 if job % 3 == 0 else 0)
        return job * job

    assert make_pool().run(list(range(30)), call) == [job * job for job in range(30)]


def test_all_servers_work():
    used = set()
    barrier = asyncio.Barrier(2)

    async def call(client, job):
        used.add(client.url)
        await asyncio.wait_for(barrier.wait(), 5)  # both must be at it at once

    make_pool(concurrency=1).run([1, 2], call)
    assert len(used) == 2


def test_a_dead_server_is_taken_out_and_its_jobs_go_elsewhere():
    tried = []

    async def call(client, job):
        if client.url.endswith("9000"):
            tried.append(job)
            raise ServerError("gone")
        return job

    pool = make_pool(concurrency=1)
    assert pool.run(list(range(20)), call) == list(range(20))
    assert [client.url[-4:] for client in pool.alive] == ["9001"]
    assert len(tried) == 3 and len(set(tried)) == 1, "one job, tried once and again twice"


def test_a_server_that_stumbles_stays():
    failures = iter([ServerError("busy"), ServerError("busy")])

    async def call(client, job):
        error = next(failures, None)
        if error:
            raise error
        return job

    pool = make_pool(count=1, concurrency=1)
    assert pool.run([1, 2, 3], call) == [1, 2, 3]
    assert len(pool.alive) == 1


def test_no_server_left_hands_over_what_is_finished():
    done = []

    async def call(client, job):
        if len(done) >= 3:
            raise ServerError(f"{client.url} is gone")
        done.append(job)
        return -job

    pool = make_pool(concurrency=1)
    with pytest.raises(NoServerLeft, match=r"9000 is gone.*9001 is gone|9001 is gone.*9000 is gone") as raised:
        pool.run(list(range(10)), call)
    assert raised.value.answers == {job: -job for job in done} and len(done) >= 3
    assert pool.alive == []
    with pytest.raises(NoServerLeft, match="no server is alive"):
        pool.run([1], call)


def test_a_refused_request_ends_everything_and_takes_no_server_out():
    async def call(client, job):
        raise RequestError("no such model")

    pool = make_pool()
    with pytest.raises(RequestError, match="no such model"):
        pool.run(list(range(10)), call)
    assert len(pool.alive) == 2


def test_servers_come_back():
    pool = make_pool()
    pool.set_alive(["http://127.0.0.1:9001"])
    assert [client.url[-4:] for client in pool.alive] == ["9001"]
    pool.set_alive(["http://127.0.0.1:9000", "http://127.0.0.1:9001"])
    assert [client.url[-4:] for client in pool.alive] == ["9000", "9001"]


def test_nothing_to_do():
    assert make_pool().run([], lambda client, job: job) == []


def test_a_mistake_in_the_call_is_raised_and_stops_nobody():
    async def call(client, job):
        return {0: "fine"}[job]

    with pytest.raises(KeyError):
        make_pool().run([0, 1, 0], call)
