"""What a command does to its process: its start and end, signals, memory, helper processes."""
