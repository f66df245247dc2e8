"""The front door of a federation: sites outside the cluster reach it over HTTPS."""
