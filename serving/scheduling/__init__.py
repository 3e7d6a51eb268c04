"""When a request runs, and together with whom."""
