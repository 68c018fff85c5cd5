"""Training of transformers: from a choice of parallelism to tasks, and the closed form that a search ranks with."""
