"""Reads `.nemo` and SentencePiece models; writes `.nemo`, TensorRT-LLM and ONNX."""
