"""Text: prompts to the features the network reads."""
