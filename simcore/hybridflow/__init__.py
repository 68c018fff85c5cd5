"""RLHF as a dataflow of distributed models: which ranks form which groups, and how the actor moves between training and generation.

HybridFlow (Sheng et al., EuroSys 2025): models are placed on pools of GPUs; the actor trains and generates on the same GPUs with
different parallelism, and its parameters are resharded in between.
"""
