"""What trainer.py uses: flags and recipes, schedule, evaluation, step, checkpoint, processes, tracking."""
