"""Federated training of a mixture of experts whose clients exchange experts among themselves (FedMoE-DA, arXiv 2411.02115).

    similarity.py, aggregation.py   which experts are alike, and of what each is made: equations (8) to (11)
    clusters.py, selection.py       groups of directions and the largest of a row, for `similarity`
    exchange.py                     who fetches which expert from whom, and how many bytes that is
    relays.py, trading.py           the same experts from cheaper peers; fewer alike experts for less time
    matching.py                     pairs of clients for gossip
    strategies.py, rounds.py        what a strategy decides in a round: one noun for simulation and for real training
    links.py, player.py             the access links of clients, and a round played on them
    hub.py, fluid.py, events.py     flows over the server's link; flows among clients, their rates and their events
    running.py                      many rounds: availability, dropouts, deadlines, faults
    planning.py                     a round as a plan that any backend runs

An expert is numbered `client * experts + index`.
"""
