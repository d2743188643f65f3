"""What is computed from a patch: handcrafted columns and pretrained embeddings."""
