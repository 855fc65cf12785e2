"""Repository context: chunks of a project's other files, the search for them, and their form in the prompt."""
