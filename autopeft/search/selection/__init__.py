"""Confirms candidates with fresh seeds, trains baselines, compares."""
