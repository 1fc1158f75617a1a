"""How fast is an artifact, and how much of what pruning promises does it deliver?"""
