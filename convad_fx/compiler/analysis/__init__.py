"""What every operation does to the activity: steps, rules, the walk, the report."""
