"""An update on its way: what counts as one and what its client signs, from the client's own package."""

import scarcity_ray_client.updates
from scarcity_ray_client.updates import *  # noqa: F403

__all__ = scarcity_ray_client.updates.__all__
