"""The commands, theme by theme: what each does, and its options.  What one needs is imported when it runs."""
