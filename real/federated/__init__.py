"""Federated training for real: the mixture of experts, data of each client, and rounds that follow the planner's decisions.

model.py            the mixture of experts as a torch module
datasets.py         MNIST and small digits that packages ship, CIFAR from a user's folder
partition.py        who has which samples, and how a client's domain looks
local.py            what a client does by itself: training and testing
federation.py       rounds in one process: train, average, exchange, mix
accuracy.py         `python -m real.federated.accuracy`: strategies side by side
"""
