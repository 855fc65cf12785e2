"""Stop rules: a completion ends with its block, before it repeats the suffix, or when it repeats itself."""
