"""The configuration: frozen dataclasses with ranges, and their loading from YAML.

Every value is checked when a config is made, from Python or from a file, and every refusal is a
`ConfigError` that names the path, the value and what would be accepted. Combinations of values are
checked by `scarcity_ray.plan`, which knows what follows from them.
"""

from scarcity_ray.config.fields import (
    RULES_GROUP,
    AggregationMethod,
    CentralNoise,
    Durability,
    NoisePlace,
    PrivacyUnit,
    RulePath,
    stream,
)
from scarcity_ray.config.sections import (
    BasketConfig,
    BufferConfig,
    GossipConfig,
    HierarchicalFederationConfig,
    Layer1Config,
    Layer2Config,
    PrivacyConfig,
    RetentionConfig,
    RuntimeConfig,
)
from scarcity_ray.config.validation import load, settings, to_plain
from scarcity_ray.config.yaml_text import parse_yaml, read_yaml

__all__ = [
    "RULES_GROUP",
    "AggregationMethod",
    "BasketConfig",
    "BufferConfig",
    "CentralNoise",
    "Durability",
    "GossipConfig",
    "HierarchicalFederationConfig",
    "Layer1Config",
    "Layer2Config",
    "NoisePlace",
    "PrivacyConfig",
    "PrivacyUnit",
    "RetentionConfig",
    "RulePath",
    "RuntimeConfig",
    "load",
    "parse_yaml",
    "read_yaml",
    "settings",
    "stream",
    "to_plain",
]
