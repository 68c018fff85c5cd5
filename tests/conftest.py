"""Settings that have to stand before anything is imported."""

import os

# Triton reads it when it is imported. On a GPU: TRITON_INTERPRET=0 make test
os.environ.setdefault("TRITON_INTERPRET", "1")
