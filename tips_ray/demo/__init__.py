"""What the demo alone needs."""
