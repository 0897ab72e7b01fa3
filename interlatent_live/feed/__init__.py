"""What viewers see: documents, the state they add up to, the terminal view and the client."""
