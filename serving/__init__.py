"""The server of serve.py, between an editor and llama.cpp's server."""
