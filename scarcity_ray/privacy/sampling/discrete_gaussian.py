"""The discrete Gaussian, whose sampler the client's package holds, as sites noise their own rows."""

from scarcity_ray_client.noise.discrete_gaussian import DiscreteGaussian, discrete_gaussian

__all__ = ["DiscreteGaussian", "discrete_gaussian"]
