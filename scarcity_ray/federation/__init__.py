"""The driver of a federation, and how it reaches the actors."""
