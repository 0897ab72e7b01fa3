"""Who asked what of which agent, in a file in which nothing can be changed unnoticed."""
