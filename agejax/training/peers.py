"""The processes of one run: they meet, compare their settings, and notice when one dies.

JAX ends a process with a C++ stack trace when others do not arrive or die. So processes meet here
first: process 0 listens at HOST:PORT, and every other process keeps a connection to it, its `Line`.
JAX's own connections to process 0 run through a relay, which does not close when process 0 dies:
JAX then only sees silence, and the watcher of the line has time to report what happened.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NoReturn

import jax
import numpy as np

from agejax.errors import UserError, line_of, one_line
from agejax.logging import console
from agejax.process import relay
from agejax.process.command import report
from agejax.process.interrupts import INTERRUPTED

# What may differ between the processes of one run: paths of files, and what each does on its own.
MAY_DIFFER = re.compile(
    r"config\.(data\.(source|cache_dir|workers|mixture\.[^.]+\.source)|model\.pretrained|watchdog)"
)
HELLO = 10.0  # seconds in which a new connection must identify itself
# Seconds in which this process may report its own error when another process fails: often both
# have the same error.
GRACE = 2.0
# Seconds for which a failed collective waits until the watcher reports which process is gone.
PATIENCE = 10.0
MAX_SHOWN, MAX_TEXT, MAX_REASON = 4, 60, 600


class Line:
    """A connection to another process that carries JSON messages, one per line."""

    def __init__(self, connection: socket.socket) -> None:
        # A machine that loses power closes no connection: TCP probes it after 30 s of silence.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.connection = connection
        self._file = connection.makefile("rb")

    def send(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # the line's watcher reports that the other is gone
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """The next message; empty if the other process is gone or sends something else."""
        try:
            message = json.loads(self._file.readline())
        except (OSError, ValueError):
            return {}
        return message if isinstance(message, dict) else {}


class Peers:
    """The other processes of this run, once all of them have arrived.

    Attributes:
      coordinator: HOST:PORT that JAX must use as the coordinator's address.
      bind: where JAX's service must listen in process 0; None in others.
      process: the number of this process, from 0.

    Args:
      address: HOST:PORT of process 0.
      processes: their number.
      process: the number of this process, from 0.
      timeout: seconds to wait for the others.

    Raises:
      UserError: an invalid address, a port in use, or processes that do not arrive in time or were
        started differently.
    """

    def __init__(self, address: str, processes: int, process: int, timeout: float) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(f"--coordinator: {address!r}; set it to HOST:PORT of process 0")
        if not 0 <= process < processes:
            raise UserError(
                f"--process: {process}; {processes} processes are numbered 0 to {processes - 1}"
            )
        self._address, self._place = address, (host.strip("[]"), int(port))
        self._processes, self.process = processes, process
        self._lines: dict[int, Line] = {}
        self._messages: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._last_word = threading.Lock()  # held by the thread that ends this process
        self._arrivals: queue.Queue[tuple[dict[str, Any], Line]] = queue.Queue()
        self._complete = False
        self.bind: str | None = None
        if process == 0:
            self._gather_all(timeout)
        else:
            self._reach_first(timeout)
        self._complete = True
        for number, line in self._lines.items():
            self._messages[number] = queue.Queue()
            _start(self._watch, number, line)

    def _gather_all(self, timeout: float) -> None:
        """In process 0: waits until all others have arrived."""
        ipv6 = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        # JAX's service gets a port that is held, not guessed: this socket, which never listens,
        # keeps it from other programs, but JAX may reuse it.
        self._held = socket.socket(family)
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._held.bind(("", 0))
        port = self._held.getsockname()[1]
        self.coordinator, self.bind = f"127.0.0.1:{port}", f"{'[::]' if ipv6 else '0.0.0.0'}:{port}"
        try:
            listener = socket.create_server(
                ("", self._place[1]), family=family, backlog=1024, dualstack_ipv6=ipv6
            )
        except OSError as error:
            raise UserError(
                f"--coordinator: cannot listen at port {self._place[1]} ({error.strerror}); "
                "choose another port, the same for all processes"
            ) from error
        _start(self._accept, listener)
        deadline = time.monotonic() + timeout
        others = self._processes - 1
        console.result(
            f"waiting for {others} other process{'es' * (others > 1)} at {self._address}, "
            f"at most {timeout:g} s"
        )
        while len(self._lines) < others:
            try:
                left = max(deadline - time.monotonic(), 0)
                hello, line = self._arrivals.get(timeout=left)
            except queue.Empty:
                missing = sorted(set(range(1, self._processes)) - self._lines.keys())
                self._refuse(
                    f"{len(self._lines) + 1} of {self._processes} processes connected to "
                    f"{self._address} within {timeout:g} s; missing: {_some(missing)}; start those "
                    "too, or raise --join_timeout"
                )
            number, processes = hello["process"], hello["processes"]
            twice = number in self._lines
            self._lines[-1 - len(self._lines) if twice else number] = line
            if processes != self._processes:
                self._refuse(
                    f"process {number} was started with --processes={processes}, process 0 with "
                    f"--processes={self._processes}; give all the same number"
                )
            if twice:
                self._refuse(f"two processes have --process={number}; number them from 0")
        for line in self._lines.values():
            line.send(complete=True, port=port)

    def _refuse(self, reason: str) -> NoReturn:
        for line in self._lines.values():
            line.send(failed=reason)
        raise UserError(reason)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            _start(self._greet, connection)

    def _greet(self, connection: socket.socket) -> None:
        connection.settimeout(HELLO)
        line = Line(connection)
        match line.receive():
            case {"process": int(), "processes": int()} as hello:
                connection.settimeout(None)
                if self._complete:
                    line.send(failed=f"all processes of the run at {self._address} are connected "
                              "already; stop that run first, or use another port")  # fmt: skip
                else:
                    self._arrivals.put((hello, line))
            case _:  # a port scanner
                connection.close()

    def _reach_first(self, timeout: float) -> None:
        """In other processes: connects to process 0 and waits until it reports that all arrived."""
        deadline = time.monotonic() + timeout
        waits = False
        while True:
            try:
                connection = socket.create_connection(self._place, timeout=HELLO)
                break
            except OSError as error:
                reason = error.strerror or str(error)
            if time.monotonic() >= deadline:
                raise UserError(
                    f"no process 0 at {self._address} within {timeout:g} s ({reason}); start it "
                    "there, give another --coordinator, or raise --join_timeout"
                )
            if not waits:
                waits = True
                console.result(f"waiting for process 0 at {self._address}, at most {timeout:g} s")
            time.sleep(min(0.2, max(deadline - time.monotonic(), 0)))
        # Process 0 may have started to wait only now, and it knows which process is missing.
        connection.settimeout(timeout + HELLO)
        line = Line(connection)
        line.send(process=self.process, processes=self._processes)
        match line.receive():
            case {"complete": True, "port": int(port)}:
                connection.settimeout(None)
            case {"failed": str(reason)}:
                raise UserError(reason)
            case _:
                raise UserError(
                    f"{self._address} does not answer as process 0 of a run does, or it ended; "
                    "start all processes again, or give another --coordinator"
                )
        self._lines[0] = line
        with socket.create_server(("127.0.0.1", 0)) as near:
            self.coordinator = f"127.0.0.1:{near.getsockname()[1]}"
            self._relay = subprocess.Popen(
                [sys.executable, "-I", "-S", relay.__file__,
                 str(near.fileno()), self._place[0], str(port)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=[near.fileno()],
            )  # fmt: skip

    def joined(self) -> None:
        """Releases the port that process 0 held, since JAX now listens there."""
        if self.process == 0:
            self._held.close()

    def exchange(self, message: str) -> list[str]:
        """The messages of all processes, in order; every process must call it."""
        if self.process:
            self._lines[0].send(message=message)
            messages: list[str] = self._messages[0].get()["messages"]
            return messages
        numbers = range(1, self._processes)
        messages = [message, *(self._messages[n].get()["message"] for n in numbers)]
        for line in self._lines.values():
            line.send(messages=messages)
        return messages

    def _watch(self, number: int, line: Line) -> None:
        while True:
            message = line.receive()
            match message:
                case {"message": _} | {"messages": _}:
                    self._messages[number].put(message)
                case {"done": True}:
                    return
                case {"failed": str(reason)}:
                    time.sleep(GRACE)
                    self._end(f"agejax: error: {reason}", reason)
                case _:
                    reason = (
                        f"process {number} is gone (killed, or its machine is down), and this one "
                        "ends too; start all again: the run resumes from its last checkpoint"
                    )
                    self._end(f"agejax: error: {reason}", reason)

    def leave(self) -> None:
        """Tells the others that this process has finished: its end is not a failure."""
        for line in self._lines.values():
            line.send(done=True)

    def fail(self, error: BaseException) -> NoReturn:
        """Ends this process because of `error`, and the others with a line that names the error.

        The line and the exit code are those of `command.run_command`.
        """
        mine = f"process {self.process}"
        if isinstance(error, KeyboardInterrupt):
            self._end("agejax: interrupted", f"{mine} was interrupted", INTERRUPTED)
        line = line_of(error) if isinstance(error, Exception) else None
        if line is not None:
            self._end(f"agejax: error: {line}", f"{mine}: {line}")
        # A collective fails as soon as a peer dies; the peer's watcher reports the cause.
        time.sleep(PATIENCE)
        self._end("".join(traceback.format_exception(error)), f"{mine} failed: {error!r}", 1)

    def _end(self, reported: str, told: str, code: int = 2) -> NoReturn:
        """Prints `reported`, sends `told` to the others, and ends this process."""
        self._last_word.acquire()
        report(reported)
        for line in self._lines.values():
            line.send(failed=one_line(told)[:MAX_REASON])
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        # JAX's own shutdown would wait for all processes, or abort with a stack trace.
        os._exit(code)


def _start(target: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=target, args=args, daemon=True, name=target.__name__).start()


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:MAX_SHOWN]))
    return shown + (f" and {len(numbers) - MAX_SHOWN} more" if len(numbers) > MAX_SHOWN else "")


_peers: Peers | None = None  # one per process, as in JAX


@contextlib.contextmanager
def meet(address: str, processes: int, process: int, timeout: float) -> Iterator[Peers]:
    """Meets the other processes, then watches them. For the arguments see `Peers`.

    Yields:
      The peers, whose `coordinator` and `bind` are held until the end of the context.
    """
    global _peers
    _peers = Peers(address, processes, process, timeout)
    # Runs before JAX's shutdown, which waits for all processes.
    atexit.register(_peers.leave)
    sys.excepthook = _fail
    yield _peers
    _peers.joined()


def _fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    assert _peers is not None
    _peers.fail(error)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """An error inside ends all processes of the run, each with one line; if alone, raises it."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if _peers is None:
            raise
        _peers.fail(error)


def leave() -> None:
    """Tells the others that this process has done its part: its end is no failure."""
    if _peers is not None:
        _peers.leave()


def agree(**facts: Any) -> None:
    """Compares facts of all processes: numbers, texts, or dicts of them.

    Raises:
      UserError: the processes differ; the same error in all processes.
    """
    if jax.process_count() == 1:
        return
    if _peers is None:
        raise UserError(
            "several processes were joined by jax.distributed.initialize; call "
            "agejax.training.sharding.join instead, which compares and watches them"
        )
    first, *others = map(json.loads, _peers.exchange(json.dumps(flat(facts))))
    differences: dict[str, str] = {}
    for number, other in enumerate(others, 1):
        for key in sorted(first.keys() | other.keys()):
            mine, its = first.get(key), other.get(key)
            if mine != its and not MAY_DIFFER.fullmatch(key):
                text = f"{key} is {_cut(mine)} in process 0 and {_cut(its)} in process {number}"
                differences.setdefault(key, text)
    if differences:
        shown = "; ".join(list(differences.values())[:MAX_SHOWN])
        more = f"; and {len(differences) - MAX_SHOWN} more" * (len(differences) > MAX_SHOWN)
        raise UserError(f"the processes differ: {shown}{more}; start all with the same settings")


def agree_on_weights(params: Any) -> None:
    """Compares the parameters of which every process has a complete copy.

    Each process reads the weights file at config.model.pretrained on its own.

    Raises:
      UserError: the processes differ; the same error in all processes.
    """
    if jax.process_count() == 1:
        return
    digest = 0
    for leaf in jax.tree.leaves(params):
        if leaf.is_fully_replicated:
            values = np.ascontiguousarray(leaf.addressable_data(0)).reshape(-1)
            digest = zlib.crc32(values.view(np.uint8).data, digest)
    agree(weights=f"{digest:08x}")


def flat(facts: Any) -> dict[str, str]:
    """{"a": {"b": 1}} -> {"a.b": "1"}, values as JSON."""
    leaves = jax.tree_util.tree_flatten_with_path(facts, is_leaf=lambda x: x is None or x == {})[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): json.dumps(value)
        for path, value in leaves
    }


def _cut(text: str | None) -> str:
    shown = "missing" if text is None else text
    return shown if len(shown) <= MAX_TEXT else shown[: MAX_TEXT - 3] + "..."
