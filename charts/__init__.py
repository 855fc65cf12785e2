"""Reading training runs and datasets, tables of them, and drawing."""
