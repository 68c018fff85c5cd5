"""The discrete-event engine: a plan on classes of ranks becomes tables of numbers, and the player works on those."""
