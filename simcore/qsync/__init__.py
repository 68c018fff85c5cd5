"""Quantisation-minimised training on mixed clusters: an operator graph with precisions on each class of devices, and its replay.

QSync (Zhao et al., IPDPS 2024): inference GPUs compute some operators in fewer bits, so that they keep up with training GPUs and
fit into their memory, where that costs least accuracy.
"""
