"""Octavo on Ray Serve: gateway, shards, router and the command line; only this package imports Ray or serves HTTP."""

import time

IMPORTED_AT = time.monotonic()
"""When this process came here: in a shard's process its imports begin now (`start_up`)."""
