"""Where patches come from, and how they are split."""
