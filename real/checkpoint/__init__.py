"""Checkpoints: saved in one parallelism, loaded in any other, committed whole or not at all. FORMAT.md has every byte."""
