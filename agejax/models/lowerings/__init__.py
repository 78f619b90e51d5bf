"""Operations with a faster form than XLA's own, and the switch back to XLA's.

Every function computes the same values as the operation that it is named after. There are three
kinds:

- Chosen by platform (`choose`), so that a program exported for a GPU has XLA's own:
  convolutions (`conv`, `depthwise`), `attention.attention` and `pool.max_pool`. On a CPU they are
  shifted multiply-adds and matrix products, since XLA:CPU has no fast grouped convolution, and is
  slow at 1x1 convolutions backwards, small maps and the gradient of a maximum.
- The same on every platform: the gradients of batch norm, layer norm and GELU (`norm`,
  `activation`), which read their inputs less often than autodiff's do, `pool.mean_pool` and
  `conv.matmul`.
- In C++, built for the CPU that traces and runs the program, on one CPU device only: `native`,
  within `native_kernels(True)`.

With `plain()` JAX's own operations replace all of them. Whether each still pays off is measured by
`python -m experiments.benchmarks.lowerings`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from jax import lax

T = TypeVar("T")

_plain: ContextVar[bool] = ContextVar("plain", default=False)
_batch_parts: ContextVar[int] = ContextVar("batch_parts", default=1)
_platform: ContextVar[str | None] = ContextVar("platform", default=None)
_native: ContextVar[bool] = ContextVar("native", default=False)


def plain() -> contextlib.AbstractContextManager[None]:
    """While active, tracing uses JAX's own operations and gradients on every platform.

    It affects only tracing: a jitted function that was traced before stays as it is.
    """
    return _set(_plain, True)


def by_platform() -> contextlib.AbstractContextManager[None]:
    """While active, tracing uses the form that suits the platform: the default."""
    return _set(_plain, False)


@contextlib.contextmanager
def native_kernels(used: bool) -> Iterator[None]:
    """While active, tracing uses kernels built for this machine's CPU where there are any, or none.

    For a program that runs in this process on one CPU device: it cannot be exported or split.
    """
    with _set(_native, used):
        yield


@contextlib.contextmanager
def batch_split(parts: int) -> Iterator[None]:
    """While active, tracing keeps the equal parts of the batch on `parts` devices separate."""
    with _set(_batch_parts, parts):
        yield


@contextlib.contextmanager
def platform(name: str) -> Iterator[None]:
    """While active, tracing leaves out the forms for other platforms than this one.

    To trace both forms and their gradients takes a step a fifth longer.
    """
    with _set(_platform, name):
        yield


def choose(*arguments: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """Calls the form for the `platform` that is given; else lowering chooses between the two."""
    name = _platform.get()
    if name is None:
        return lax.platform_dependent(*arguments, cpu=cpu, default=default)
    return (cpu if name == "cpu" else default)(*arguments)


def is_plain() -> bool:
    """Whether `plain` is active."""
    return _plain.get()


def is_native() -> bool:
    """Whether kernels built for this machine's CPU may be used, as given to `native_kernels`."""
    return _native.get()


def batch_parts() -> int:
    """The number of devices that hold the batch, as given to `batch_split`."""
    return _batch_parts.get()


@contextlib.contextmanager
def _set(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
