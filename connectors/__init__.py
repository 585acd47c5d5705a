"""What talks to a server: Kafka sources and sinks, the Cassandra schema, writer and reader."""
