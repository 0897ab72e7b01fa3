"""The console without its process: routes, models, the feed's bridge, and who may write."""
