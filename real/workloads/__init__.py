"""What runs each workload for real, found by the workload's name: `transformer_training.py` and so on; see `real.backend`."""
