"""From tables and records to figures, tables for papers, token strips and cards."""
