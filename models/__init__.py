"""Models: heads on feature tables, the fine-tuned network, the ensemble and the bundle."""
