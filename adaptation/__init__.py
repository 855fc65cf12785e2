"""What adapt.py does: choose a model by the machine, remember what is done, measure before and after, compare."""
