"""What the files of a version that generates text are called, and what they are asked for."""

ENCODER_FILE = "encoder.onnx"
DECODER_FILE = "decoder.onnx"
LOGITS = "logits"
BEST = "best_token"
