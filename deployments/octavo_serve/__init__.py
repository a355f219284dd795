"""Octavo on Ray Serve: gateway, shards, router and the command line; the only package that imports Ray or FastAPI."""
