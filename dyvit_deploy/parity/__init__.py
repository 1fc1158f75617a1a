"""How far two artifacts agree: logits within a tolerance, and the tokens that they keep."""
