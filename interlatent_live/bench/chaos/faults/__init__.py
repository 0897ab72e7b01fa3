"""One module per kind of fault; :mod:`.fault` says what a fault is."""
