"""The one-machine stack: real Kafka, Cassandra and Flink from their jars, and the demo shop."""
