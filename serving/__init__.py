"""What serve.py puts between an editor and llama.cpp's server."""
