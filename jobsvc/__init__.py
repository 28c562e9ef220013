"""jobsvc: a durable job service for Ray clusters."""
