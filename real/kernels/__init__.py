"""Triton kernels of low-precision training, RLHF and checkpoints, each beside a plain torch function that says what it computes.

    amax.py         largest magnitude of a tensor or of each channel, and the scale that follows from it
    quantise.py     float to int8 (nearest or stochastic) and back
    int8_gemm.py    int8 product, int32 sums, scales and bias in the epilogue
    half_gemm.py    float16 or bfloat16 product that casts its operands as it loads them; gradients of a linear layer
    convolution.py, convolution_gradients.py    implicit GEMM over channels-last images, int8 or half
    linear_logprob.py (+ _kernels)              log-probability and entropy of tokens without logits in memory
    gae.py, grouped_advantage.py                advantages of PPO and of GRPO
    shard_gather.py shards of a checkpoint into one buffer, with the xxh3 of each
    paths.py        which of the two, Triton or torch, a device runs
    gemm.py, blocks.py, images.py               what products share on the device
    launching.py, tiles.py, checking.py         what all share on the host
    compile_ahead.py                            compiles them without a GPU and shows registers, spills and shared memory

Importing a kernel's file imports triton; importing `paths` does not.
"""
