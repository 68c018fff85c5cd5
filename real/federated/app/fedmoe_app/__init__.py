"""The app that `flwr run` packs."""
