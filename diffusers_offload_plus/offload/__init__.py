"""The offloading engine, from tensors (:mod:`.tensors`) up to pipelines (:mod:`.enabling`)."""
