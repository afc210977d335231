"""What a model costs and what its router did.  Pictures (`plots`) need matplotlib and are imported where used."""

from minimoe.analysis import cost

__all__ = ["cost"]
