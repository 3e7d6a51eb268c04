"""Checkpoints of models that generate text, as the graphs that serving steps.

encoder.onnx   of an encoder-decoder model: a source text -> each decoder layer's keys and values
decoder.onnx   some tokens of every row and its cache -> the logits after them, and the cache

What only an architecture knows stays in its own `transformers` modules: the wrappers here run them
with another cache and another attention function, and nothing else.
"""
