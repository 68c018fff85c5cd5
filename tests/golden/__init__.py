"""One expected report for each scenario; `make golden` writes them anew."""
