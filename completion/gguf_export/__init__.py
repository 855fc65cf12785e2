"""A saved model as a GGUF file, llama.cpp's format, and the cache of such files."""
