"""What operators run beside Slipway, and the code that makes some of it."""
