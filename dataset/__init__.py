"""What makes data: source files to windows, contamination, vocabularies."""
