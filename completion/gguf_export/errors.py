"""Why a model has no GGUF form; apart, since a model that the cache has needs nothing of the converter."""


class CannotConvert(Exception):
    """llama.cpp is not certain to compute what transformers does. The message is one line that says why."""
