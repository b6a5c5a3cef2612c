"""Grids, their status and logs, notebooks run by papermill, and what the commands share."""
