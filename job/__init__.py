"""The Flink job: options, topology, and the entry point for ``flink run -py``."""
