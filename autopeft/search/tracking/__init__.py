"""Logs trials and final runs with TensorBoard, MLflow and W&B."""
