"""This project beside a plain PyTorch loop and Hugging Face's ways."""
