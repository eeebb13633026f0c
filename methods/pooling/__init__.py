"""What stands for an input where the head reads it."""
