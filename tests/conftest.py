"""What many tests share: a manual clock, one Ray cluster and one PostgreSQL server for the whole session."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from benchmarks._postgres import PrivateServer

MEMORY = Path("/dev/shm")
"""A folder in memory, where this machine has one; a sync costs nothing there, and hundreds of ledgers do."""

IS_CI = bool(os.environ.get("CI"))

# How many examples a property is tried with. A dear test takes a part: `settings.default.max_examples // 3`.
settings.register_profile(
    "ci", max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=10)
settings.register_profile("thorough", settings.get_profile("ci"), max_examples=300)
settings.load_profile("ci" if IS_CI else "quick")  # --hypothesis-profile is read after this


def pytest_configure(config: pytest.Config) -> None:
    """Slow tests run when they are asked for by name: an ``-m`` by hand takes the place of pyproject's.

    The quick run, ``-m "not ray"`` by hand, leaves out the long ones, too; CI does not, nor a run without
    ``-m``.
    Tests' files lie in memory where there is plenty. The workers of ``-n``, which inherit the environment,
    have one thread each for linear algebra: waiting threads burn the time of the others.
    """
    if config.option.markexpr and "slow" not in config.option.markexpr:
        config.option.markexpr = f"({config.option.markexpr}) and not slow"
        if "not ray" in config.option.markexpr and "long" not in config.option.markexpr and not IS_CI:
            config.option.markexpr += " and not long"
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**32:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    if getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is collected stays: looking for garbage in it, again and again, took 40 % of the time.

    In the tests garbage is looked for less often than by default, which takes 4 % of the time.
    """
    gc.set_threshold(10_000, 10, 10)
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ledgers without a path of their own are kept here, not in the developer's home."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


class ManualClock:
    """A clock that stands still until it is told to move."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One cluster on this machine; `HierarchicalFederation` finds the connection that exists."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def runtime(request: pytest.FixtureRequest) -> str:
    """Each runtime in turn, for tests that must hold on both."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return str(request.param)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PrivateServer]:
    """One PostgreSQL server for the whole session, its files in memory; skips where there is none."""
    from benchmarks._postgres import PrivateServer, server_folder

    programs = server_folder()
    if programs is None:
        pytest.skip("PostgreSQL's server (Debian's package postgresql) is not installed on this machine")
    pytest.importorskip("psycopg", reason="the extra 'postgresql' is not installed")
    try:
        server = PrivateServer(programs)
    except (OSError, RuntimeError) as error:
        pytest.skip(f"PostgreSQL's server could not be started on this machine: {error}")
    yield server
    server.remove()


@pytest.fixture
def postgres_url(postgres_server: PrivateServer) -> str:
    """The URL of a database without a ledger."""
    import psycopg

    with psycopg.connect(postgres_server.url()) as connection:
        connection.execute("SET lock_timeout = '10s'; DROP SCHEMA IF EXISTS scarcity_ray CASCADE")
    return postgres_server.url()
