"""Count computation in reference system time (RST): costs, budgets, policies and schedules."""
