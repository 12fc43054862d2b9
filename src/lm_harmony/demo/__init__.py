"""A first look without network: a tiny model and a micro-benchmark that the package makes itself, in seconds."""
