"""What a run did: what its routers decided, and where its time went."""
