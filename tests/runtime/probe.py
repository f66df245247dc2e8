"""Roles and functions that the contract suite runs on every runtime."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.runtime.rpc import Compute, Peers, Role


class Probe:
    """A role that keeps what it is told."""

    def __init__(self, start: int = 0, peers: Peers | None = None, compute: Compute | None = None) -> None:
        self.seen: list[Any] = [start] if start else []
        self.peers = peers
        self.compute = compute

    def reset(self) -> None:
        self.seen.clear()

    def add(self, value: Any) -> int:
        self.seen.append(value)
        return len(self.seen)

    def all(self) -> list[Any]:
        return list(self.seen)

    def pid(self) -> int:
        return os.getpid()

    def gpus(self) -> dict[str, float]:
        """What Ray has given it of a GPU."""
        import ray

        given: dict[str, float] = ray.get_runtime_context().get_assigned_resources()
        return {name: amount for name, amount in given.items() if name == "GPU"}

    def flags(self, value: dict[str, Any]) -> list[bool]:
        return [array.flags.writeable for array in value.values()]

    def keep(self, array: NDArray[Any]) -> NDArray[Any]:
        self.seen.append(array)
        return array

    def kept_sum(self) -> float:
        return float(sum(np.sum(a) for a in self.seen))

    def fail(self, error: Exception) -> None:
        raise error

    def ask(self, name: str, method: str, *args: object) -> Any:
        """Ask another role, from inside this one."""
        assert self.peers is not None
        return self.peers.handle(name).call(method, *args).result()

    def total(self, items: list[int], offset: NDArray[Any]) -> list[float]:
        """Run tasks from inside this role."""
        assert self.compute is not None
        reference = self.compute.put(offset)
        return [f.result() for f in [self.compute.submit(plus, item, reference) for item in items]]

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Once(Role):
    def task_name(self) -> str:
        """What Ray calls this call."""
        import ray

        return str(ray.get_runtime_context().get_task_name())


class Broken:
    def __init__(self) -> None:
        raise ValueError("no such luck")


class Slow:
    """A role that takes its time to start."""

    def __init__(self, seconds: float) -> None:
        time.sleep(seconds)


def plus(item: float, offset: NDArray[Any]) -> float:
    return float(item + offset.sum())


def flags_of(item: NDArray[Any], shared: NDArray[Any]) -> list[bool]:
    return [item.flags.writeable, shared.flags.writeable]


def yields() -> bool:
    """Whether this thread runs only where a processor has nothing else to do."""
    return sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_IDLE


def fail_with(error: Exception) -> None:
    raise error


def grow(items: list[int]) -> list[int]:
    items.append(1)
    return items


def die(marker: str) -> str:
    """End the process the first time, as a crash would."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "done"
    os._exit(1)
