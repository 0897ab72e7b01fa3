"""What is worth an operator's attention, collected for viewers."""
