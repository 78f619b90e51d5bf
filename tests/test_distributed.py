"""Several processes train one run: with the results of one process, even if some of them die."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_resume import last_checkpoint

import tiny
from agejax.errors import UserError
from agejax.train import train
from agejax.training import peers, sharding

HERE = pathlib.Path(__file__).parent


@contextlib.contextmanager
def held_port():
    """A free port of this machine, reserved meanwhile against other programs.

    The socket never listens, so with SO_REUSEADDR process 0 may listen there.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def run_all(port, commands, count=None, timeout=300):
    """Runs one command per process, all at once: [(exit code, output)]."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    env = os.environ | {
        "PYTHONPATH": f"{HERE.parent}:{HERE}", "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count or len(commands)), "XLA_FLAGS": flags,
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)], env=env | {"JAX_PROCESS_ID": str(i)},
            start_new_session=True, text=True, cwd=HERE.parent,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for i, command in enumerate(commands)
    ]  # fmt: skip
    try:
        # The pipe ends with the last process that holds it: no child is left either.
        printed = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return list(zip([process.returncode for process in processes], printed, strict=True))


def start(faces, cache, workdir, name="SIGCONT", at=0, workers=0, settings="{}"):
    """Starts two processes of one device each; the second signals itself right before its batch
    number `at`: [(exit code, output)]."""
    script = [HERE / "interrupted_run.py", faces, cache, workdir, workers]
    with held_port() as port:
        return run_all(port, [[*script, "SIGCONT", 0, settings], [*script, name, at, settings]])


def start_main(faces, cache, workdir, flags, count=None):
    """Starts `python -m agejax.main` once per element of `flags`, with these extra flags."""
    common = [
        "-m", "agejax.main", "--config=tests/tiny.py", f"--workdir={workdir}",
        f"--config.data.source={faces}", f"--config.data.cache_dir={cache}",
        "--config.sharding.devices=0",
    ]  # fmt: skip
    with held_port() as port:
        return run_all(port, [[*common, *each] for each in flags], count)


def errors_of(printed):
    """The error lines; fails on a stack trace of Python or C++."""
    assert "Traceback" not in printed
    assert "stack trace" not in printed
    return [line for line in printed.splitlines() if line.startswith("agejax: error: ")]


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines if "loss" in line])


@pytest.fixture(scope="module")
def together(faces, cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two") / "run"
    for code, printed in start(faces, cache, workdir):
        assert code == 0, printed
    return workdir


def test_two_processes_lose_what_one_loses(faces, cache, together, tmp_path):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.sharding.devices = 2
    train(config, tmp_path / "run")
    np.testing.assert_allclose(losses(together), losses(tmp_path / "run"), rtol=1e-5)
    shutil.copytree(together, tmp_path / "copy")
    config.sharding.devices = 1
    assert train(config, tmp_path / "copy")["steps"] == 24  # one process restores what two saved


def test_a_run_of_which_one_process_is_stopped_or_killed_ends_bit_equal(
    faces, cache, together, tmp_path
):
    workdir = tmp_path / "run"
    for code, printed in start(faces, cache, workdir, "SIGTERM", 6):
        assert code == 0, printed
        assert "stopped" in printed
    (survivor, printed), (killed, _) = start(faces, cache, workdir, "SIGKILL", 8, workers=1)
    assert (killed, survivor) == (-signal.SIGKILL, 2), printed
    (error,) = errors_of(printed)
    assert "process 1 is gone" in error
    assert "resumes from its last checkpoint" in error
    for code, printed in start(faces, cache, workdir):
        assert code == 0, printed
        assert "finished" in printed
    step, arrays = last_checkpoint(workdir)
    expected_step, expected = last_checkpoint(together)
    assert step == expected_step
    jax.tree.map(np.testing.assert_array_equal, expected, arrays)


def test_two_processes_with_data_on_their_devices_and_several_steps_a_call_lose_the_same(
    faces, cache, together, tmp_path
):
    """Also when a signal to one of them stops both between two calls."""
    # As in `together`, where checkpoints and evaluations are due after 4 and 6 steps.
    settings = json.dumps({"data.resident": "on", "steps_per_call": 2})
    for code, printed in start(faces, cache, tmp_path, "SIGTERM", 6, settings=settings):
        assert code == 0, printed
        assert "stopped" in printed
    for code, printed in start(faces, cache, tmp_path, settings=settings):
        assert code == 0, printed
        assert "finished" in printed
    np.testing.assert_allclose(losses(tmp_path), losses(together), rtol=1e-4)


def test_two_processes_with_cached_features_lose_what_one_loses(faces, cache, tmp_path):
    settings = {
        "model.cached_views": 3, "optim.lr_multipliers": (("backbone/.*", None), (".*", 1.0)),
        "augment.mixup": 0.0, "sampling.copy_strength": 1.0, "total.steps": 8,
    }  # fmt: skip
    given = json.dumps(settings)
    for code, printed in start(faces, cache, tmp_path / "two", settings=given):
        assert code == 0, printed
    config = tiny.get_config()
    # Of a cache of its own: it must not take the features of the two.
    config.data.source, config.data.cache_dir = str(faces), str(tmp_path / "cache")
    config.update_from_flattened_dict(settings)
    train(config, tmp_path / "one")
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)


@pytest.mark.parametrize("killed", [0, 2])
def test_whoever_dies_every_other_process_ends_with_one_line_that_names_it(killed):
    """Also for process 0, after whose death JAX prints a C++ stack within 0.01 s."""
    script = (
        "import os, signal, sys, time, numpy, jax\n"
        "from agejax.training import sharding\n"
        "from jax.experimental import multihost_utils\n"
        "sharding.join()\n"
        "for i in range(10**6):\n"
        f"    if i == 5 and jax.process_index() == {killed}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    multihost_utils.process_allgather(numpy.ones(3))\n"
    )
    with held_port() as port:
        ends = run_all(port, [["-c", script]] * 3)
    for i, (code, printed) in enumerate(ends):
        if i == killed:
            assert code == -signal.SIGKILL
            continue
        assert code == 2, printed
        (error,) = errors_of(printed)
        assert f"process {killed} is gone" in error


def test_processes_with_different_configs_and_images_all_end_with_the_difference(
    faces, cache, tmp_path
):
    """The data's place may differ, its contents may not, though the number is the same."""
    shutil.copytree(faces, tmp_path / "other")
    first, second = sorted((tmp_path / "other").iterdir())[:2]
    shutil.copyfile(first, second)
    flags = (
        ["--config.eval.every.steps=6"],
        ["--config.eval.every.steps=8", f"--config.data.source={tmp_path / 'other'}"],
    )
    for code, printed in start_main(faces, cache, tmp_path / "run", flags):
        assert code == 2, printed
        (error,) = errors_of(printed)
        assert re.fullmatch(
            "agejax: error: the processes differ: config.eval.every.steps is 6.0 in process 0 and "
            '8.0 in process 1; data is "[0-9a-f]+" in process 0 and "[0-9a-f]+" in process 1; '
            "start all with the same settings",
            error,
        )
    assert not (tmp_path / "run").exists()


def test_an_error_of_one_process_ends_the_others_too_and_is_named(faces, cache, tmp_path):
    flags = [], [f"--config.data.source={tmp_path / 'nowhere'}"]
    ends = start_main(faces, cache, tmp_path / "run", flags)
    for code, printed in ends:
        assert code == 2, printed
        (error,) = errors_of(printed)
        assert f"{tmp_path / 'nowhere'}" in error
    assert "agejax: error: process 1: " in ends[0][1]


def test_a_process_that_waits_in_vain_says_for_whom_before_and_after(faces, cache, tmp_path):
    ((code, printed),) = start_main(faces, cache, tmp_path / "run", [["--join_timeout=1"]], 3)
    assert code == 2, printed
    waiting, error = printed.splitlines()
    assert "waiting for 2 other processes at 127.0.0.1:" in waiting
    assert "at most 1 s" in waiting
    assert "1 of 3 processes connected" in error
    assert "missing: 1, 2; start those too" in error


def meet_all(port, arrivals, timeout=20):
    """The result for each of `arrivals`, (process, processes): its Peers or the error message."""

    def one(arrival):
        process, processes = arrival
        try:
            return peers.Peers(f"127.0.0.1:{port}", processes, process, timeout)
        except UserError as error:
            return str(error)

    with futures.ThreadPoolExecutor(len(arrivals)) as pool:
        return list(pool.map(one, arrivals))


def test_processes_meet_and_each_hears_all_in_their_order():
    with held_port() as port:
        all_ = meet_all(port, [(2, 3), (0, 3), (1, 3)])
    with futures.ThreadPoolExecutor(3) as pool:
        heard = list(pool.map(lambda p: p.exchange(f"from {p.process}"), all_))
    assert heard == [["from 0", "from 1", "from 2"]] * 3
    for each in all_:
        each.leave()  # else their watchers would end this process


def test_a_relay_waits_for_the_service_and_stays_open_when_process_0_closes():
    """JAX prints a C++ stack when its connection to process 0 ends."""
    with held_port() as port:
        first, second = meet_all(port, [(0, 2), (1, 2)])
    near, far = (
        (host, int(number))
        for host, number in (each.coordinator.split(":") for each in (second, first))
    )
    with socket.create_connection(near) as client:
        client.sendall(b"hello")
        with socket.socket() as service:
            service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            service.bind(far)  # `first` holds it, but lets JAX's service listen there
            service.listen()
            connection, _ = service.accept()
            assert connection.recv(5, socket.MSG_WAITALL) == b"hello"
            connection.sendall(b"hello yourself")
            assert client.recv(14, socket.MSG_WAITALL) == b"hello yourself"
            connection.close()
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.recv(1)
    first.leave()
    second.leave()


@pytest.mark.parametrize(
    ("arrivals", "message"),
    [
        (
            [(0, 3), (1, 3)],
            "2 of 3 processes connected to .* within 3 s; missing: 2; start those too",
        ),
        ([(1, 2)], "no process 0 at .* within 3 s .*; start it there, give another --coordinator"),
        ([(0, 3), (1, 3), (1, 3)], "two processes have --process=1"),
        ([(0, 2), (1, 3)], "process 1 was started with --processes=3, process 0 with --proc"),
        ([(3, 3)], "--process: 3; 3 processes are numbered 0 to 2"),
    ],
)
def test_processes_that_do_not_fit_all_say_the_same(arrivals, message, monkeypatch):
    with held_port() as port:
        for said in meet_all(port, arrivals, timeout=3):
            assert re.search(message, said)


def test_a_port_that_another_program_has_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (said,) = meet_all(port, [(0, 2)])
    assert f"--coordinator: cannot listen at port {port}" in said
    assert "choose another port" in said
    with pytest.raises(UserError, match="set it to HOST:PORT of process 0"):
        peers.Peers("node-0", 2, 0, 1)


def test_a_program_that_is_no_process_0_is_not_believed():
    with socket.create_server(("127.0.0.1", 0)) as other, futures.ThreadPoolExecutor(1) as pool:

        def answer():
            connection, _ = other.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return connection

        open_ = pool.submit(answer)
        (said,) = meet_all(other.getsockname()[1], [(1, 2)])
        open_.result().close()
    assert "does not answer as process 0 of a run does" in said


def test_a_stranger_at_the_port_of_process_0_disturbs_nobody():
    with held_port() as port, futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet_all, port, [(0, 2)])
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as s:
                s.sendall(b"GET / HTTP/1.1\r\n\r\n")
                break
        (second,) = meet_all(port, [(1, 2)])
    for each in (first.result()[0], second):
        each.leave()


@pytest.fixture
def agree_with(monkeypatch):
    """Makes `peers.agree` run as in two processes, where the other one has `theirs`."""

    def agree(mine, theirs):
        class Pair:
            def exchange(self, message):
                if theirs is mine:
                    return [message] * 2
                return [message, json.dumps(peers.flat(theirs))]

        monkeypatch.setattr(peers, "_peers", Pair())
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        peers.agree(**mine)

    return agree


def test_every_kind_of_difference_is_named(agree_with):
    same = {
        "config": {
            "a": {},
            "b": [1, 2],
            "c": None,
            "nan": math.nan,
            "data": {"source": "/x", "mixture": {"imdb-wiki": {"source": "/x"}}},
        },
        "versions": {"jax": "0.10.2"},
        "data": "5eed",
    }
    agree_with(same, same)
    may = copy.deepcopy(same)
    may["config"]["data"]["source"] = may["config"]["data"]["mixture"]["imdb-wiki"]["source"] = "/y"
    agree_with(same, may)
    for path, value, message in [
        (("config", "b"), [1, 3], r"config\.b\.1 is 2 in process 0 and 3 in process 1"),
        (("config", "c"), 0, r"config\.c is null in process 0 and 0 in process 1"),
        (("config", "a"), {"k": 1}, r"config\.a is {} in process 0 and missing in process 1; "
         r"config\.a\.k is missing in process 0 and 1"),
        (("versions", "jax"), "0.10.3", 'versions.jax is "0.10.2" in process 0 and "0.10.3" in'),
        (("data",), "bad", 'data is "5eed" in process 0 and "bad" in process 1; start all with'),
    ]:  # fmt: skip
        other = copy.deepcopy(same)
        group = other
        for key in path[:-1]:
            group = group[key]
        group[path[-1]] = value
        with pytest.raises(UserError, match=message):
            agree_with(same, other)
    with pytest.raises(UserError, match="and 96 more") as caught:
        agree_with(*({f"k{i:02d}": text * 500 for i in range(100)} for text in "xy"))
    assert len(str(caught.value)) < 720


def test_weights_that_differ_in_one_bit_differ(monkeypatch):
    messages = []

    class Pair:
        def exchange(self, message):
            messages.append(message)
            return messages * (2 if len(messages) == 1 else 1)

    weights = {"kernel": jnp.ones((3, 4), jnp.bfloat16), "scale": jnp.float32(2)}
    monkeypatch.setattr(peers, "_peers", Pair())
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    peers.agree_on_weights(weights)
    flipped = weights | {"scale": jnp.float32(np.nextafter(np.float32(2), np.float32(3)))}
    with pytest.raises(UserError, match="the processes differ: weights is "):
        peers.agree_on_weights(flipped)


def test_the_first_task_of_a_slurm_step_is_process_0():
    environment = {
        "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_JOB_ID": "4099",
        "SLURM_STEP_NODELIST": "node-a,node-b",
    }  # fmt: skip
    # 4099 is 3 beyond 2^12; the ports are the last 2^12 there are.
    assert sharding.slurm_step(environment) == ("node-a:61443", 8, 5)
    for nodes in ("gpu[007-009,012],other", "gpu[007,012]"):
        place = sharding.slurm_step(environment | {"SLURM_STEP_NODELIST": nodes})
        assert place == ("gpu007:61443", 8, 5)
    assert sharding.slurm_step(environment | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert sharding.slurm_step({}) is None


def test_half_an_address_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "node-0:1234")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(UserError, match=r"--processes \(JAX_NUM_PROCESSES\) is missing"):
        sharding.join()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES: 'two' is not a whole number"):
        sharding.join()


@pytest.mark.parametrize(
    ("visible", "tasks", "node", "local", "gpus"),
    [
        ("0,1,2,3", "4(x2)", 1, 2, [2]),  # shared out among the tasks of a node
        ("0,1,2,3", "1(x2)", 1, 0, [0, 1, 2, 3]),  # all for the node's one task
        ("0,1,2,3", "4,2", 1, 1, [2, 3]),
        ("0", "4(x2)", 0, 3, [0]),  # each task sees its own alone
    ],
)
def test_a_slurm_task_takes_its_share_of_the_gpus(visible, tasks, node, local, gpus):
    environment = {
        "CUDA_VISIBLE_DEVICES": visible,
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
    }
    assert sharding.local_gpus(environment) == gpus
    assert sharding.local_gpus({"CUDA_VISIBLE_DEVICES": visible}) is None


@pytest.mark.parametrize(
    ("devices", "accumulate", "batch_norm", "line"),
    [
        (2, 1, "global", ""),
        (1, 4, "device", ""),
        (4, 1, "global", "16 over 4 devices leaves each device 4 at a time, too few to keep it "
                         "busy; raise it to 32 or more"),
        (4, 2, "device", "16 over 4 devices x 2 micro-batches leaves each device 2 at a time, for "
                         "batch norm too, too few to keep it busy; raise it to 64 or more"),
    ],
)  # fmt: skip
def test_few_images_per_device_are_warned_of(devices, accumulate, batch_norm, line, capsys):
    config = tiny.get_config()
    config.sharding.devices, config.sharding.batch_norm = devices, batch_norm
    config.optim.accumulate = accumulate
    sharding.of_run(config)
    expected = f"warning: config.data.batch_size: {line}, or lower config.sharding.devices\n"
    assert capsys.readouterr().err == (expected if line else "")
