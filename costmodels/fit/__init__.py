"""Fits of the cost models to published measurements: one file for each table, found by its name.

`costmodels/fit/gemm.py` has `fit(frame, catalog) -> dict`, which depends on nothing but the rows it is given, so that the same
function serves `make fit` and leave-one-out. `python -m costmodels.fit` writes all of `costmodels/fitted/`.
"""
