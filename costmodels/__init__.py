"""What a thing costs: pure functions and catalogues. Nothing here knows about events, graphs or torch."""
