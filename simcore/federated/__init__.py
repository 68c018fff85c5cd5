"""Federated training of a mixture of experts whose clients exchange experts among themselves (FedMoE-DA, arXiv 2411.02115).

    similarity.py, aggregation.py   which experts are alike, and of what each is made: equations (8) to (11)
    exchange.py                     who fetches which expert from whom, and how many bytes that is
    relays.py, trading.py           the same experts from cheaper peers; fewer alike experts for less time
    matching.py                     pairs of clients for gossip
    strategies.py, rounds.py        what a strategy decides in a round: one noun for simulation and for real training
    links.py, player.py             the access links of clients, and a round played on them
    running.py                      many rounds: availability, dropouts, deadlines, faults
    planning.py                     a round as a plan that any backend runs

An expert is numbered `client * experts + index`.
"""
