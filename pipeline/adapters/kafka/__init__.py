"""Kafka: the topics, the two ways to get partitions, reading requests and writing messages.

`source.KafkaSource` reads, `publisher.KafkaPublisher` writes, `connection.create_topics` makes what is missing.
"""
