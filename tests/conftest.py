"""Shared by all tests: eight simulated devices, a compile cache, and a small synthetic UTKFace."""

from __future__ import annotations

import functools
import os
import pathlib
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import Any

# Before JAX starts: tests that need one device take the first. Most of their time goes into
# compiling, mostly for speed that a few steps of small networks do not need. Without these
# optimisations, and with fusions compiled the older way, a step compiles in a third of the time;
# as one piece, and not as 32 that several cores may share, in another quarter less.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0"
    " --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

# A shell starts background processes with Ctrl-C ignored, which children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
# A first example compiles, and a busy machine is no bug.
settings.register_profile("agejax", deadline=None)
settings.load_profile("agejax")


@pytest.fixture
def users_jit() -> Callable[..., Any]:
    """`jax.jit` with fusions compiled as users' runs have them, where a rounding matters."""
    return functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True})


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder of 96 chips named as UTKFace names them; brightness follows age, colour gender."""
    folder = tmp_path_factory.mktemp("faces") / "UTKFace"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(96):
        age, gender, race = int(rng.integers(1, 90)), i % 2, i % 5
        pixels = rng.integers(0, 60, (40, 40, 3)) + 2 * age
        pixels[..., gender] //= 2
        name = f"{age}_{gender}_{race}_201701{i:011d}.jpg.chip.jpg"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name, quality=95)
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """The cache folder of this session and of the processes it starts; never the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    # Compiled programs are kept from session to session.
    compiled = ROOT / ".cache" / "xla"
    compiled.mkdir(parents=True, exist_ok=True)
    (folder / "xla").symlink_to(compiled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGEJAX_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def real_utkface(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    """The archive of real faces, and a cache for it at 32 px.

    To prepare and decode it takes half a minute of CPU time, so all workers use one cache.
    """
    archive = SHARED / "data" / "utkface" / "UTKFace.tar.gz"
    if not archive.exists():
        pytest.skip(f"{archive} is not there")
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    return archive, place / "real-utkface"


@pytest.fixture(scope="session")
def trained(
    faces: pathlib.Path, cache: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The folder of a run of a few steps; do not write to it but what commands write."""
    import tiny
    from agejax.train import train

    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.total = {"steps": 4}
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(config, workdir)
    return workdir


@pytest.fixture(scope="session")
def other(trained: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A copy of that run in another folder, for what takes two runs."""
    workdir = tmp_path_factory.mktemp("other") / "run"
    shutil.copytree(trained, workdir)
    return workdir


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium, with a camera that shows a test picture."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
            ],
        )  # fmt: skip
        yield chromium
        chromium.close()
