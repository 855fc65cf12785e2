"""Stop rules: a completion ends with its block, before the suffix, or when it repeats itself."""
