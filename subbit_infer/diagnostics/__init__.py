"""What runs where, and why."""
