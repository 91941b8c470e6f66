"""Kafka: topics, the two consumer modes, the producer."""
