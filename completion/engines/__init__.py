"""Two engines behind one interface: llama.cpp and PyTorch, and which of them runs a model."""
