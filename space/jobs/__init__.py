"""What the Space does for visitors: no page, no HTML."""
