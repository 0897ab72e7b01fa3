"""How fast people can step in, and whether what they did ends by itself whatever dies."""
