"""Flywheel: collect, verify, store, distill, gate and redeploy agent trajectories."""

__version__ = "0.1.0"
