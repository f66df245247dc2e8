"""Where roles live: on Ray, or all in this process. Only this package imports Ray, and only when asked to."""

from scarcity_ray.runtime.assembly import Assembly
from scarcity_ray.runtime.base import RoleSpec, Runtime
from scarcity_ray.runtime.local import LocalRuntime
from scarcity_ray.runtime.session import DriverSession

__all__ = ["Assembly", "DriverSession", "LocalRuntime", "RoleSpec", "Runtime"]
