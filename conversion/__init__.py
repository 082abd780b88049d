"""Reads and writes `.nemo` and GGUF; reads SentencePiece models; writes TensorRT-LLM and ONNX."""
