"""Trained hybrids in folders of their own, and in the format of Hugging Face peft."""
