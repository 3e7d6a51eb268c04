"""Serve a Triton-layout model repository over HTTP and gRPC."""

__version__ = "0.1.0"
