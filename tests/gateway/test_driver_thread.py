"""Calls that gateways leave to the thread that runs the rounds."""

from __future__ import annotations

import threading
from typing import NoReturn

import pytest

from scarcity_ray.errors import ActorLost
from scarcity_ray.gateway.driver_thread import SharedDriver


def interrupted() -> NoReturn:
    raise KeyboardInterrupt


def test_whoever_waits_is_answered() -> None:
    """A second Ctrl-C does not wait for the end of a call: the gateway's thread would never end."""
    driver, heard = SharedDriver(), list[BaseException]()

    def ask() -> None:
        with pytest.raises(ActorLost, match="interrupted") as refused:
            driver(interrupted)
        heard.append(refused.value)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    with pytest.raises(KeyboardInterrupt):
        driver.wait(5.0)
    asking.join(5.0)
    driver.close()
    assert len(heard) == 1
