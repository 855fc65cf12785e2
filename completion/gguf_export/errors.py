"""The converter's error. It has its own file, because a model that is in the cache needs nothing else from here."""


class CannotConvert(Exception):
    """llama.cpp may not compute what transformers computes. The message is one line that says why."""
