"""Those who decide, one file each: found by name in a scenario (`planner: {name: ...}`)."""
