"""Watching a federation: its status as one document, metrics, a dashboard, logs and traces.

Plain data in, plain data out: nothing here calls a role, opens a port or knows Ray. `status` makes the
document that the command, the console and the metrics read; `history` remembers the last rounds; `metrics`
names what is measured; `exposition` and `dashboard` write it as Prometheus and Grafana read it; `logs` and
`traces` are switched on by the environment.
"""
