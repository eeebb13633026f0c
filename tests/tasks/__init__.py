"""Tests of autopeft.tasks."""
