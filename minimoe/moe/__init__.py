"""What makes it sparse."""
