"""`python -m serving` is the `slipway` command."""

from serving.cli import main

main()
