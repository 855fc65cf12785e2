"""What evaluate.py reports: loss, filling in, problems (pass@k), intervals, tables."""
