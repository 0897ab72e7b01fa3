"""One module per environment family: what its observations and actions mean."""
