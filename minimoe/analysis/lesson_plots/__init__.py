"""Pictures that one lesson needs: what is longer than a cell, or shows an idea that lasts."""
