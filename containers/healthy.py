"""End with 0 if the server in this container answers a model's requests; else with 1 and a line that says why not."""

import os
import sys
import urllib.request

URL = os.environ.get("OCTAVO_HEALTH", "http://127.0.0.1:8000/health")

try:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(URL, timeout=5).close()
except OSError as error:
    sys.exit(f"{URL}: {error}")
