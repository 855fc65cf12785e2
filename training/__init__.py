"""What trainer.py and train.py use: flags, rows of an epoch, one step, saved states, processes, logs."""
