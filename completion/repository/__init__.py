"""What else of a project the model should see: chunks of its files, the search for them, and how they are written."""
