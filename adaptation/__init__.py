"""The steps of adapt.py: choose a model for the machine, remember what is done, measure before and after, compare."""
