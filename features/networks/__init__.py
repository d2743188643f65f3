"""Pretrained networks, their weights and their embeddings."""
