from __future__ import annotations

import pytest

from sppo_megatron.config.urls import url_problems


def problems(*urls: str) -> list[str]:
    return list(url_problems(urls, "reward.judge"))


@pytest.mark.parametrize(
    "url", ["http://host:8000", "https://host/", "https://host/api", "https://host/api/v1", "http://[::1]:80"]
)
def test_taken(url):
    assert problems(url) == []


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret@host/v1",
        "https://secret@host",
        "https://host/v1?api_key=secret",
        "http://u:secret@[::1]:80",
    ],
)
def test_a_key_in_a_url_is_refused_and_not_shown(url):
    [problem] = problems("http://host", url)
    assert problem.startswith("reward.judge.urls holds a password or a key") and "secret" not in problem
    assert problem.endswith("use reward.judge.api_key_env")


@pytest.mark.parametrize(
    "url", ["host:8000", "ftp://host", "http://", "http://a host", "https://host/a path", "http://host/#a"]
)
def test_no_url_of_a_server(url):
    assert problems(url) == [f"reward.judge.urls holds {url!r}: each is http://host:port or https://host/path"]


@pytest.mark.parametrize("other", ["http://host", "http://host/", "http://host/v1", "http://host/v1/"])
def test_a_server_is_named_once(other):
    assert problems("http://host", other) == ["reward.judge.urls names a server twice"]
    assert problems("http://host/api", other) == []
