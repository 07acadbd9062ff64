"""How fast an artifact runs here: its latency beside other runtimes', kernel by kernel."""
