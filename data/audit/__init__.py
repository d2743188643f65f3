"""What is odd about patches: duplicates, blank and blurred ones, slides that nobody named."""
