"""How much privacy releases cost: Gaussian DP, zero-concentrated DP, and the bounds between them."""
