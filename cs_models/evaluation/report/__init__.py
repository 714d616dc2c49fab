"""What is made of the results."""
