"""What every config is made of: fields that are options too, a check of choices, a JSON round trip."""
