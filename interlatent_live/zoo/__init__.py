"""The zoo: agents worth explaining, each with its recipe, its transcoders and its report."""
