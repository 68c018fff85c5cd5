"""RLHF for real: one controller, and groups of processes that each run a part of a model.

job.py              what is trained: algorithm, model, batch, optimiser
task.py             prompts whose answers can be checked: even tokens for a tiny Llama
pretrained.py       SmolLM2-135M, weights and tokenizer from a package
sums.py             its task
losses.py           losses, token rewards and advantages as pure functions
models.py           transformers' Llama as actor and reference, with one number a token as critic
sampling.py         answers, with a KV cache and random numbers of each sequence
reference.py        all of it in one plain process, to compare with
parallel.py         tensor parallelism (DTensor) and sharding (FSDP2)
stages.py           stages of a pipeline, and what goes between them
passes.py           a batch through a stage in portions, in the order of 1F1B
engine.py           the actor between its training and its generation groups, by simcore.hybridflow's boxes
generator.py        the model that an actor generates with, between its training groups and those
part.py             what a rank has of a model
roles.py, worker.py what a process does of each model
protocols.py        which process gets which rows, and whose results count
controller.py       pools of processes, futures, data that moves between processes and not through the driver
learning.py         longer runs of all algorithms, for the notebook
algorithms.py       the dataflow of PPO, GRPO, ReMax and Safe-RLHF
"""
