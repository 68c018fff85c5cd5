"""What happens when: plans, clusters, planners, the engine and reports."""
