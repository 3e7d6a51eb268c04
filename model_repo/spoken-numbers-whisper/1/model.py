"""For Triton's Python backend, which needs Slipway's package: pip install 'slipway[cpu,text]'."""

from serving.triton_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
