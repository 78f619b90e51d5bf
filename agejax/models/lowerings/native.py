"""Attention and some convolutions by native.cc, which this machine's C++ compiler builds.

XLA:CPU computes attention as products of small matrices, with arrays of scores in memory between
them, a depthwise convolution's gradients as many passes over the images, and the convolution of RGB
images as a product that takes all its taps side by side. native.cc does each in one pass, on all
cores. It is built at its first use, in some seconds, and kept in the cache folder.
Where there is no compiler, or it fails, XLA's forms stay in use.

Results do not depend on the number of cores.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from agejax import paths
from agejax.errors import UserError
from agejax.logging import console
from agejax.models import lowerings
from agejax.models.lowerings.windows import keeping_inputs, plain_conv

SOURCE = pathlib.Path(__file__).with_name("native.cc")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-std=c++17", "-shared", "-fPIC", "-w")
COMPILERS = ("c++", "g++", "clang++")
PATIENCE = 300.0  # seconds
LANES = 16  # floats of the widest register
KERNELS = (3, 5)  # edges of depthwise kernels
GROUPS = 16  # of images, each with its own sum of the kernel's gradient
ATTENTION, ATTENTION_BACK = "agejax_attention", "agejax_attention_back"
DEPTHWISE, DEPTHWISE_BACK = "agejax_depthwise", "agejax_depthwise_back"
RGB, RGB_BACK = "agejax_rgb", "agejax_rgb_back"


def has_attention(qkv: jax.Array) -> bool:
    """Whether `attention` may be used here, and takes such a qkv [B, T, 3, H, D]."""
    fits = qkv.dtype == jnp.float32 and qkv.shape[-1] % LANES == 0
    return fits and _may_be_called()


def has_depthwise(x: jax.Array, kernel: jax.Array, padding: int) -> bool:
    """Whether `depthwise` and `depthwise_back` may be used here, and take such arrays."""
    fits = (
        x.dtype == kernel.dtype == jnp.float32
        and x.shape[-1] >= LANES
        and kernel.shape[0] in KERNELS
        and padding < kernel.shape[0]
    )
    return fits and _may_be_called()


def has_rgb(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether `rgb` may be used here, and takes such arrays."""
    fits = (
        x.dtype == kernel.dtype == jnp.float32
        and kernel.shape[:3] == (3, 3, 3)
        and kernel.shape[3] >= LANES
    )
    return fits and _may_be_called()


def _may_be_called() -> bool:
    """Whether this step may use kernels, and there are some; builds them where they are not yet."""
    return lowerings.is_native() and is_ready()


@functools.cache
def is_ready() -> bool:
    """Whether the kernels are built and XLA knows them; builds them where they are not yet."""
    try:
        library = ctypes.CDLL(str(build()))
    except (OSError, UserError) as error:
        console.note(f"kernels for this CPU are not built ({error}); XLA's forms are slower")
        return False
    for name in (ATTENTION, ATTENTION_BACK, DEPTHWISE, DEPTHWISE_BACK, RGB, RGB_BACK):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return True


def build() -> pathlib.Path:
    """The library in the cache folder, built where it is not there yet.

    Raises:
      OSError: no compiler, or a folder that cannot be written.
      UserError: the compiler fails or takes too long, or the cache folder is unknown.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or list(filter(shutil.which, COMPILERS))[:1]
    if not compiler:
        raise FileNotFoundError("no C++ compiler")
    parts = (SOURCE.read_bytes(), repr((FLAGS, compiler, jax.__version__)).encode(), _cpu())
    folder = paths.cache_folder() / "native"
    library = folder / f"{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
    if library.exists():
        return library
    console.note(f"building the kernels for this CPU with {compiler[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as own:  # another process may build it as well
        built = pathlib.Path(own) / library.name
        command = [*compiler, *FLAGS, "-I", jax.ffi.include_dir(), str(SOURCE), "-o", str(built)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
        except subprocess.SubprocessError as error:
            raise UserError(f"{compiler[0]} failed or took too long") from error
        built.replace(library)
    return library


def _cpu() -> bytes:
    """What tells this kind of CPU from others: computers may share a cache folder."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_bytes().split(b"\n\n")[0].splitlines()
    except OSError:
        return repr((platform.machine(), platform.processor())).encode()
    kinds = (b"vendor_id", b"model name", b"flags", b"CPU part", b"Features")
    return b"\n".join(line for line in lines if line.startswith(kinds))


@jax.custom_vjp
def attention(qkv: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v for every head: float32 [B, T, 3, H, D] -> [B, T, H, D]."""
    return _forward(qkv)[0]


def _forward(qkv: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    batch, tokens, _, heads, dim = qkv.shape
    y, logs = _call(ATTENTION, [(batch, tokens, heads, dim), (batch, heads, tokens)], qkv)
    return y, (qkv, y, logs)


def _backward(kept: tuple[jax.Array, ...], dy: jax.Array) -> tuple[jax.Array]:
    (dqkv,) = _call(ATTENTION_BACK, [kept[0].shape], *kept, dy)
    return (dqkv,)


attention.defvjp(_forward, _backward)


def depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """One filter per channel: float32 x [B, H, W, C], kernel [k, k, 1, C] -> [B, H', W', C]."""
    return _convolve(DEPTHWISE, x, kernel, stride, padding)


def depthwise_back(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, jax.Array]:
    """The gradients of x and of the kernel, like both, from that of `depthwise`'s result."""
    shapes = [x.shape, (min(GROUPS, len(x)), *kernel.shape)]
    dx, sums = _call(DEPTHWISE_BACK, shapes, x, kernel, dy, stride=stride, padding=padding)
    return dx, sums.sum(axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def rgb(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """A convolution: float32 x [B, H, W, 3], kernel [3, 3, 3, F] -> [B, H', W', F]."""
    return _convolve(RGB, x, kernel, stride, padding)


def _rgb_back(
    stride: int, padding: int, kept: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    # Of images nobody asks for a gradient as a rule, so XLA leaves it out.
    (dx,) = jax.vjp(lambda x: plain_conv(x, kernel, stride, padding), x)[1](dy)
    shape = (min(GROUPS, len(x)), *kernel.shape)
    (sums,) = _call(RGB_BACK, [shape], x, dy, stride=stride, padding=padding)
    return dx, sums.sum(axis=0)


rgb.defvjp(keeping_inputs(rgb), _rgb_back)


def _convolve(name: str, x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    rows, columns = ((n + 2 * padding - kernel.shape[0]) // stride + 1 for n in x.shape[1:3])
    shape = (len(x), rows, columns, kernel.shape[3])
    (y,) = _call(name, [shape], x, kernel, stride=stride, padding=padding)
    return y


def _call(
    name: str, shapes: Sequence[tuple[int, ...]], *arrays: jax.Array, **numbers: int
) -> Sequence[jax.Array]:
    """What native.cc computes: float32 arrays of these shapes."""
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = jax.ffi.ffi_call(name, results, vmap_method="sequential")
    return call(*arrays, **{key: np.int64(number) for key, number in numbers.items()})
