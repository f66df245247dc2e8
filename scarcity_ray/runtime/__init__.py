"""Where actors live: on Ray, or all in this process; only this package imports Ray, when asked to."""

from scarcity_ray.runtime.base import RoleSpec, Runtime
from scarcity_ray.runtime.local import LocalRuntime

__all__ = ["LocalRuntime", "RoleSpec", "Runtime"]
