"""How many shards a model needs: pure decisions over what the shards report."""
