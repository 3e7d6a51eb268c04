"""Images by removing noise, step by step: the arithmetic, without any graph or scheduler."""
