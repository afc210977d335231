"""What every transformer has."""
