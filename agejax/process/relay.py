"""Passes JAX's connections to process 0 on, and keeps them open when process 0 closes them.

python relay.py FD HOST PORT

A process of its own, which `agejax.training.peers` starts: JAX holds Python's lock while it waits
for some answers, so a thread could not pass them on. FD is a socket that listens. It ends with its
parent, whose death closes stdin, and imports nothing of agejax.
"""

import contextlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    fd, host, port = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are meant for the run, which still needs this
    start(accept, socket.socket(fileno=int(fd)), (host, int(port)))
    sys.stdin.buffer.read()


def start(target: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=target, args=args, daemon=True).start()


def accept(listener: socket.socket, place: tuple[str, int]) -> None:
    while True:
        near, _ = listener.accept()
        start(join, near, place)


def join(near: socket.socket, place: tuple[str, int]) -> None:
    while True:
        try:
            far = socket.create_connection(place)
            break
        except OSError:  # JAX's service is not up yet
            time.sleep(0.05)
    start(pump, near, far)
    # The end of this one is not passed on: JAX would abort at it.
    pump(far, near)
    threading.Event().wait()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            sink.sendall(data)


if __name__ == "__main__":
    main()
