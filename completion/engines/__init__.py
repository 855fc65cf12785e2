"""Two engines with one interface, llama.cpp and PyTorch, and the choice between them."""
