"""Hands out jobs, retries, stops in time, writes the outcome."""
