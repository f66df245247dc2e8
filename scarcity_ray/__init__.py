"""Federated learning on Ray among parties that do not trust each other."""
