"""Experiments on this machine: trials are local runs, driven by the same plan as in a cluster."""
