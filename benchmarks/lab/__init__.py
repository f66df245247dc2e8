"""The research lab: accuracy under attack and under fixed clip norms, as plain array programs."""
