"""Tests of autopeft.training."""
