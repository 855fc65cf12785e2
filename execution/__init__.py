"""Running code that no one has read, apart from its test and from this machine; pass@k."""
