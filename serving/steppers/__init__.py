"""Models that answer step by step: what a step is, and what one request makes of it."""
