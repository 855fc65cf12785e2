"""Read training runs, datasets and results; make tables of them, and charts."""
