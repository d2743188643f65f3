"""Questions asked of finished models, each a cached step."""
