"""Federated training for real: the mixture of experts, data of each client, and rounds that follow the planner's decisions.

model.py            the mixture of experts as a torch module
datasets.py         MNIST and small digits that packages ship, CIFAR from a user's folder
characters.py       text of several kinds, for a character language model
partition.py        who has which samples, and how a client's domain looks
local.py            what a client does by itself: training and testing
federation.py       rounds in one process: train, average, exchange, mix
accuracy.py         `python -m real.federated.accuracy`: strategies side by side
calibrating.py      what training costs clients that share cores; part of `windtunnel calibrate`
variations.py       `python -m real.federated.variations`: rounds, predicted and measured

Apart, each in its own process:
member.py           a client's part of a round; its model is on its disk
coordinator.py      the server's part: averages, and decides
orders.py           what the server tells each client: whom to serve, what to fetch, what to mix
exchanging.py       how clients get at what peers offer

Over the network:
certificates.py     an authority and a certificate for everybody, for one run
granting.py         who may have what in a round, and which requests are answered
parcels.py          tensors as safetensors, checked against what was asked for
peers.py            gRPC with mutual TLS: serve, fetch
shaping.py          relays that let bytes through as links of given rates would

With Flower:
app/                what `flwr run` packs
settings.py         what a run can be told
flower_server.py    the ServerApp
flower_client.py    the ClientApp
flower_messages.py  models in Flower's messages
peer_process.py     serves a client's experts beside its SuperNode
deployment.py       `python -m real.federated.deployment`: all of it on this machine

As a plan (`--backend real`):
plan_facts.py       what its processes know of the network
plan_roles.py       what a client and the server do in a round
plan_worker.py      one rank
network_process.py  the links
"""
