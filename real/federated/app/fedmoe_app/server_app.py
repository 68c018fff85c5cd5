"""The ServerApp; see `real.federated.flower_server`."""

from real.federated.flower_server import app

__all__ = ["app"]
