"""The sources of noise, which the client's package holds, as sites noise their own rows."""

from scarcity_ray_client.noise.source import (
    NoiseSource,
    SeededNoise,
    SystemNoise,
    random_words,
    rounded_gaussian,
)

__all__ = ["NoiseSource", "SeededNoise", "SystemNoise", "random_words", "rounded_gaussian"]
