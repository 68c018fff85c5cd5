"""One file for each command of `windtunnel`. What a command needs is imported when it runs, so that `--help` is instant."""
