"""What the files of a version that generates text are called."""

ENCODER_FILE = "encoder.onnx"
DECODER_FILE = "decoder.onnx"
