"""The processes: thin shells that do I/O around the pure cores of interlatent_live."""
