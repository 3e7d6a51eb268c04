"""Checkpoints of models that hear speech, as the graphs that are served.

wav2vec2   one graph: a waveform -> log-probabilities of characters, frame by frame
whisper    an encoder: a waveform -> each decoder layer's keys and values; a decoder that is stepped
"""
