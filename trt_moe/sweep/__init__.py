"""One gater with a run-time latency weight against gaters trained for each weight."""
