"""A cluster and an Azure in one process, over real loopback sockets: a test double of what we do not own."""
