"""Noise from the operating system's entropy: continuous and discrete Gaussians."""
