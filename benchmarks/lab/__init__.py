"""The research lab: accuracy under attack and under fixed clip norms, and audits of the privacy claim."""
