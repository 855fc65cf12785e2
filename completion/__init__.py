"""From a prompt to ranked completions, and the conversation in a terminal."""
