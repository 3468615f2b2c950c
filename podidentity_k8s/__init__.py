"""The ports of the core, over the Kubernetes API: watching, assignments, events, the leader's lock."""
