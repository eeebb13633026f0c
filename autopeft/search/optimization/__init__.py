"""The Optuna study, its samplers, successive halving, the Pareto front, warm starts."""
