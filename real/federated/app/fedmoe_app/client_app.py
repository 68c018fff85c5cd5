"""The ClientApp; see `real.federated.flower_client`."""

from real.federated.flower_client import app

__all__ = ["app"]
