"""Which hybrid of the bank a task could start from."""
