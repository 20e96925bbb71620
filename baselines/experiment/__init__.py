"""Run many trainings under one budget: plans, jobs, tuning, ablations, kept in folders."""
