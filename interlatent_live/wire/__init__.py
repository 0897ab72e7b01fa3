"""The wire, version 1: message schemas, codec, sequence and loss accounting, credit; pure but for sockets.py."""
