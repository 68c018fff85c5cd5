"""What a trace says: numbers, critical path, idle time by cause, pictures."""
