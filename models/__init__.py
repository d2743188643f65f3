"""What is learned: heads on feature tables, and the bundle that carries them away."""
