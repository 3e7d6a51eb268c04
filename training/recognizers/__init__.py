"""Checkpoints of models that hear speech, as the graphs that are served.

wav2vec2   one graph: a waveform -> log-probabilities of characters, frame by frame
"""
