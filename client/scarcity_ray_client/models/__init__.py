"""Models as they are: trees of arrays, PyTorch modules, estimators; each to one vector and back."""

from scarcity_ray_client.models.codec import FloatVector, ModelCodec
from scarcity_ray_client.models.estimators import initialised
from scarcity_ray_client.models.parts import Part
from scarcity_ray_client.models.saving import export_model, load_model, save_model

__all__ = ["FloatVector", "ModelCodec", "Part", "export_model", "initialised", "load_model", "save_model"]
