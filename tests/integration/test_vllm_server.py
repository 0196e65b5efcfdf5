"""Rollouts by real vLLM servers: the same training as in process, and servers that die.

Three servers: two for the trainer, with a key that was made for them, a third, with a key of the user's and log-probs
from before the temperature, that must be refused if that matters. The tests that kill servers come last.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.forked import processes
from tests.installed import needs_vllm
from tests.integration import offline_commands, tiny_task
from tests.stored_rollouts import stored_groups

pytestmark = needs_vllm

KEY = {"VLLM_API_KEY": "a secret"}


class Servers:
    """What one `sppo serve` started."""

    def __init__(self, model: Path, port: int, count: int, *extra: str, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "sppo_megatron.cli.serve", "--model", str(model)]
        options = ["--num-servers", str(count), "--port", str(port), "--dtype", "float32", "--max-model-len", "64"]
        self.ports = [port + index for index in range(count)]
        self._process = subprocess.Popen(
            [*command, *options, "--kv-cache-memory-mib", "32", *extra],
            env=tiny_task.environment() | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def wait(self) -> list[str]:
        """The lines that it printed once all of its servers answered."""
        lines = [self._process.stdout.readline().strip()]
        while lines[-1] and not lines[-1].startswith("rollout.engine"):
            lines.append(self._process.stdout.readline().strip())
        return lines

    def processes(self) -> list[psutil.Process]:
        """What `sppo serve` started, and what that started."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def kill(self, port: int) -> None:
        """SIGKILL to the server on a port, and to its workers."""
        for child in psutil.Process(self._process.pid).children():
            if str(port) in child.cmdline():
                for process in [*child.children(recursive=True), child]:
                    process.send_signal(signal.SIGKILL)
                child.wait(timeout=10)

    def close(self) -> int:
        self._process.terminate()
        return self._process.wait(timeout=60)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_task.make_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def servers(task: Path):
    """The made key is in the environment of the tests, as the printed line puts it into a user's."""
    both: list[Servers] = []
    try:
        # 64 tokens of a step: prompts that come together don't fit in one
        both.append(Servers(task / "start", 8411, 2, "--", "--max-num-batched-tokens", "64"))
        both.append(Servers(task / "start", 8421, 1, "--", "--logprobs-mode", "raw_logprobs", env=KEY))
        [made, given], [of_the_users] = [each.wait() for each in both]
        assert given == "rollout.engine=vllm_server 'rollout.server.urls=[http://127.0.0.1:8411,http://127.0.0.1:8412]'"
        assert KEY["VLLM_API_KEY"] not in of_the_users
        name, _, key = made.removeprefix("export ").partition("=")
        assert name == "VLLM_API_KEY" and len(key) >= 32
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, key)
            yield both
    finally:
        for each in both:
            each.close()
    children = [process for process in psutil.process_iter(["cmdline"]) if "8411" in (process.info["cmdline"] or [])]
    assert not children, "a server outlived sppo serve"


def urls(*ports: int) -> str:
    return f"[{','.join(f'http://127.0.0.1:{port}' for port in ports)}]"


def overrides(task: Path, output: Path, **changes: object) -> list[str]:
    values = {
        "rollout.engine": "vllm_server",
        "rollout.server.urls": urls(8411, 8412),
        "rollout.server.backoff_s": 0.05,
        "rollout.server.retries": 1,
        "rollout.verify": "true",
    }
    return tiny_task.overrides(task, output, **(values | changes))


def train(arguments: list[str], ranks: int = 1, **env: str) -> subprocess.CompletedProcess[str]:
    return processes.run(tiny_task.command(arguments, ranks), 300, env=tiny_task.environment() | env)


def succeed(arguments: list[str], ranks: int = 1, **env: str) -> subprocess.CompletedProcess[str]:
    done = train(arguments, ranks, **env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def groups(output: Path, iteration: int) -> list[dict]:
    return stored_groups(output, iteration)


def curve(output: Path) -> list[tuple]:
    """What must be the same in two runs: (step, loss, gradient norm, reward)."""
    return [(line["step"], line["loss"], line["grad_norm"], line["reward_mean"]) for line in tiny_task.steps(output)]


def assert_same(one: Path, other: Path) -> None:
    expected, found = curve(one), curve(other)
    assert len(expected) == len(found) == 9
    for a, b in zip(expected, found, strict=True):
        assert a == pytest.approx(b, rel=2e-4, abs=1e-6)


def status_of(path: str, key: str | None, method: str = "POST", body: bytes = b"{}") -> int:
    """What the first server answers."""
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    request = urllib.request.Request(f"http://127.0.0.1:8411{path}", body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_nobody_gets_in_without_the_key(servers) -> None:
    """Each path that vLLM has, its control endpoints too; and with the key no method of a worker but ours."""
    key = os.environ["VLLM_API_KEY"]
    request = urllib.request.Request("http://127.0.0.1:8411/openapi.json", headers={"Authorization": f"Bearer {key}"})
    paths = json.load(urllib.request.urlopen(request, timeout=60))["paths"]
    controls = {"/collective_rpc", "/pause", "/start_weight_update", "/init_weight_transfer_engine", "/update_weights"}
    assert controls <= paths.keys() and "/v1/completions" in paths
    for path in (*paths, "/metrics", "/docs", "/openapi.json", "/collective_rpc/", "//collective_rpc"):
        for method in ("GET", "POST", "OPTIONS"):
            for wrong in (None, "", KEY["VLLM_API_KEY"], key[:-1]):
                assert status_of(path, wrong, method) == 401, (path, method)
    for method, status in (("sppo_report", 200), ("sppo_load", 403), ("load_model", 403), ("shutdown", 403)):
        assert status_of("/collective_rpc", key, body=json.dumps({"method": method}).encode()) == status
    assert status_of("/health", key, "GET") == 200
    for process in servers[0].processes():
        assert key not in " ".join(process.cmdline()), "every user of the machine can read a command line"


def test_generation_without_a_trainer(task: Path, servers, tmp_path: Path) -> None:
    """First, since nothing is pushed to the servers: they serve the model that they were started with."""
    output = tmp_path / "rollouts.jsonl"
    offline_commands.succeed(
        "generate",
        *offline_commands.generation(task, **{"rollout": "vllm_server", "rollout.server.urls": urls(8411, 8412)}),
        "--output",
        output,
    )
    offline_commands.check_log_probs(task / "start", output)
    responses = [response for group in offline_commands.groups_of(output) for response in group["responses"]]
    assert len(responses) == 32 * offline_commands.K and "policy_version" not in responses[0]


@pytest.fixture(scope="module")
def reference(task: Path, servers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights by broadcast from two tensor-parallel ranks, each of which serves one of the servers."""
    output = tmp_path_factory.mktemp("reference") / "run"
    succeed(overrides(task, output, **{"parallelism.tensor_model_parallel_size": 2}), ranks=2)
    return output


def test_what_was_sampled_is_what_is_trained(reference: Path) -> None:
    for line in tiny_task.steps(reference):
        assert line["mismatch_max"] < 1e-4 and line["probe_mismatch"] < 1e-4
        assert line["sync_bytes"] > 0
    for iteration in range(3):
        for group in groups(reference, iteration):
            assert [response["policy_version"] for response in group["responses"]] == [3 * iteration] * 4


def test_in_process_engine_trains_the_same(task: Path, reference: Path, tmp_path: Path) -> None:
    succeed(tiny_task.overrides(task, tmp_path / "run", **{"rollout.engine": "vllm", "rollout.verify": "true"}))
    assert_same(reference, tmp_path / "run")


def test_weights_over_a_shared_disk(task: Path, reference: Path, tmp_path: Path) -> None:
    succeed(overrides(task, tmp_path / "run", **{"rollout.server.weight_sync": "disk"}))
    assert_same(reference, tmp_path / "run")
    assert not (tmp_path / "run" / "weights").exists()


def test_one_step_ahead(task: Path, servers, tmp_path: Path) -> None:
    """Responses are of the policy one iteration back, weighted for it; a resumed run has the very same ones."""
    ahead = {
        "rollout.ahead": "true",
        "objective.importance_weight": "sequence",
        "objective.importance_cap": 1.2,
        "train.iterations": 4,
    }
    succeed(overrides(task, tmp_path / "whole", **ahead))
    versions = [groups(tmp_path / "whole", i)[0]["responses"][0]["policy_version"] for i in range(4)]
    assert versions == [0, 0, 3, 6]
    lines = tiny_task.steps(tmp_path / "whole")
    assert all(line["importance_ess"] == pytest.approx(8.0, rel=1e-4) for line in lines[:3])
    assert all(line["importance_ess"] < 7.9 for line in lines[3:])
    # Stopped inside the second iteration, with the third one's rollouts already under way, and continued.
    stopped = overrides(task, tmp_path / "stopped", **ahead, **{"checkpoint.save_interval": 5})
    tiny_task.kill_after(6, stopped, 1, tmp_path / "stopped")
    succeed([*stopped, "checkpoint.load=latest"])
    for a, b in zip(lines, tiny_task.steps(tmp_path / "stopped"), strict=True):
        assert (a["step"], a["loss"], a["grad_norm"]) == (b["step"], b["loss"], b["grad_norm"])


def test_temperature_and_log_probs(task: Path, servers, reference: Path, tmp_path: Path) -> None:
    """A server that reports log-probs from before the temperature is refused if the temperature isn't 1."""
    wrong = {"rollout.server.urls": urls(8421), "rollout.temperature": 0.7}
    done = train(overrides(task, tmp_path / "wrong", **wrong), **KEY)
    assert done.returncode == 2
    assert "http://127.0.0.1:8421 returns log-probs from before the temperature" in done.stderr
    assert "--logprobs-mode processed_logprobs" in done.stderr
    assert not (tmp_path / "wrong").exists()


def test_api_key(task: Path, servers, tmp_path: Path) -> None:
    done = train(overrides(task, tmp_path / "run", **{"rollout.server.urls": urls(8421), "rollout.temperature": 0.7}))
    assert done.returncode == 2 and "401" in done.stderr and "rollout.server.api_key_env" in done.stderr
    assert KEY["VLLM_API_KEY"] not in done.stderr and os.environ["VLLM_API_KEY"] not in done.stderr


def test_no_server(task: Path, tmp_path: Path) -> None:
    done = train(overrides(task, tmp_path / "run", **{"rollout.server.urls": urls(8499)}))
    assert done.returncode == 2
    [message] = [line for line in done.stderr.splitlines() if line.startswith("configuration error:")]
    assert "no rollout server answers at http://127.0.0.1:8499" in message and "sppo serve" in message


def test_a_server_killed_mid_run_loses_nothing(task: Path, servers, reference: Path, tmp_path: Path) -> None:
    """The other server takes its prompts; samples depend on seeds alone, so the run is the same."""
    arguments = overrides(task, tmp_path / "run", **{"train.iterations": 3})
    process = processes.start(
        tiny_task.command(arguments, 1), env=tiny_task.environment(), stderr=subprocess.PIPE, text=True
    )
    tiny_task.wait_for_step(tmp_path / "run", 1, process)
    servers[0].kill(8411)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr[-4000:]
    assert "http://127.0.0.1:8411" in stderr and "taken out" in stderr
    assert_same(reference, tmp_path / "run")
    for iteration in range(3):
        assert len(groups(tmp_path / "run", iteration)) == 6


def test_no_server_left_keeps_what_was_finished(task: Path, servers, reference: Path, tmp_path: Path) -> None:
    """The last server dies in the middle of an iteration; with another one the run continues to the same end."""
    slow = {"rollout.server.urls": urls(8411, 8412), "rollout.server.concurrency": 1, "checkpoint.save_interval": 3}
    arguments = overrides(task, tmp_path / "run", **slow)
    process = processes.start(
        tiny_task.command(arguments, 1), env=tiny_task.environment(), stderr=subprocess.PIPE, text=True
    )
    tiny_task.wait_for_step(tmp_path / "run", 3, process)
    servers[0].kill(8412)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 1, stderr[-4000:]
    assert "no rollout server" in stderr
    continued = [*arguments, "checkpoint.load=latest", f"rollout.server.urls={urls(8421)}"]
    succeed(continued, **KEY)
    assert_same(reference, tmp_path / "run")
