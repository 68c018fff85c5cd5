"""Work without places, one file each: found by name in a scenario (`workload: {name: ...}`)."""
