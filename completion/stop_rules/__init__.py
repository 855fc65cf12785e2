"""Where a completion ends: Python's and Java's blocks, what follows the cursor, repetition."""
