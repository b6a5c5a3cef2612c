"""Building the book from prose pages and executed notebooks."""
