from __future__ import annotations

import pytest

from sppo_megatron.config.urls import url_problems


def problems(*urls: str, have_paths: bool = True) -> list[str]:
    return list(url_problems(urls, "reward.judge", have_paths=have_paths))


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
@pytest.mark.parametrize("have_paths", [False, True])
def test_a_key_in_a_url_is_refused_and_not_shown(url, have_paths):
    [problem] = problems("http://host", url, have_paths=have_paths)
    assert problem.startswith("reward.judge.urls holds a password or a key") and "secret" not in problem
    assert problem.endswith("use reward.judge.api_key_env")


@pytest.mark.parametrize(
    "url", ["host:8000", "ftp://host", "http://", "http://a host", "https://host/a path", "http://host/#a"]
)
def test_no_url_of_a_server(url):
    assert problems(url) == [f"reward.judge.urls holds {url!r}: each is http://host:port or https://host/path"]


def test_paths_only_for_apis():
    assert problems("http://host:80/", have_paths=False) == []
    assert problems("http://host:80/v1", have_paths=False) == [
        "reward.judge.urls holds 'http://host:80/v1': each is http://host:port, without a path"
    ]


def test_a_server_is_named_once():
    assert problems("http://host", "http://host") == ["reward.judge.urls names a server twice"]
